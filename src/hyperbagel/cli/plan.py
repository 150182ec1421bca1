"""`hyperbagel plan`: whether a stage fits on some devices, before any of them is rented."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from hyperbagel.bagel.shipped import resolve
from hyperbagel.cli.commands import with_short_names, with_underscores
from hyperbagel.cli.errors import CommandParser
from hyperbagel.cli.options import PlanOptions
from hyperbagel.cli.training import check_names

if TYPE_CHECKING:
    from lightning import LightningModule

    from hyperbagel.training.planning import Cluster, MemoryPlan

GIB = 2**30
_OWN_PARTS = {
    "reward": "hyperbagel.rewards.bagel.BagelReward",
    "features": "hyperbagel.critics.pixel.BagelViTFeatures",
}
_BRANCHES = ("student", "critic", "fake")


@dataclass(frozen=True)
class Planned:
    """A plan, with what it is of. adapted: whether adapters train; notes: what was taken for granted."""

    stage: str
    cluster: Cluster
    plan: MemoryPlan
    notes: tuple[str, ...]
    adapted: bool = False


def run_plan(arguments: Sequence[str]) -> None:
    """Memory of a stage on some devices."""
    arguments = with_short_names(PlanOptions, with_underscores(arguments))
    inference = "--inference=true" in arguments
    parser = CommandParser(prog="hyperbagel plan")
    told = "YAML of a stage; several are laid over each other, the later over the earlier"
    parser.add_argument("--config", nargs="+", action="append", default=[], required=not inference, help=told)
    parser.add_class_arguments(PlanOptions)
    parsed = parser.parse_args(arguments).as_dict()
    configs = [file for files in parsed.pop("config") for file in files]
    options = PlanOptions(**parsed)
    if inference:
        print(inference_table(options))
        return
    check_names([f"--config={config}" for config in configs])
    print(table(planned(configs, options), options))


def inference_table(options: PlanOptions) -> str:
    """Memory of drawing and answering, in every way of holding weights, and the cards that it fits on."""
    from hyperbagel.bagel.checkpoint import read_config
    from hyperbagel.bagel.config import BagelConfig
    from hyperbagel.evaluation.tables import Table
    from hyperbagel.pipeline.footprint import Request, inference_rows

    config = BagelConfig() if options.model is None else read_config(resolve(options.model))
    rows = inference_rows(config, Request(options.side, options.text))
    return Table("GiB on one GPU, its own context included, and the smallest card for it", rows).markdown()


def planned(configs: Sequence[str], options: PlanOptions) -> Planned:
    """The plan of the stage that some YAML files configure. Raises ValueError for settings that do not fit."""
    from hyperbagel.cli.trainer import read_config
    from hyperbagel.training.memory import Workload
    from hyperbagel.training.networks import LoRA
    from hyperbagel.training.planning import Cluster, plan

    config = read_config(configs)
    trainer, arguments = config.trainer, config.model.init_args
    devices = options.devices or (trainer.devices if isinstance(trainer.devices, int) else 1) * trainer.num_nodes
    sharded = "ModelParallel" in str(trainer.strategy) if options.sharding is None else options.sharding == "fsdp"
    if options.lora is not None:
        for name in _BRANCHES:
            if name in arguments:
                arguments[name].lora = Namespace(dataclasses.asdict(LoRA(options.lora, options.lora)))
    notes, outside = _replace_outside_parts(arguments)
    with _configuration_folder(arguments, notes):
        stage = build_on_meta(config.model)
    cluster = Cluster(devices, sharded)
    found = plan(stage, cluster, Workload(options.side, options.text, options.editing))
    name = str(config.model.class_path).rpartition(".")[2]
    adapted = any(getattr(arguments.get(branch), "lora", None) is not None for branch in _BRANCHES)
    return Planned(name, cluster, dataclasses.replace(found, fixed=found.fixed | outside), tuple(notes), adapted)


def build_on_meta(model: Namespace) -> LightningModule:
    """A stage with shapes but without weights, of its part of a parsed configuration."""
    import torch
    from lightning import LightningModule
    from lightning.pytorch.cli import LightningArgumentParser

    parser = LightningArgumentParser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    with torch.device("meta"):
        stage: LightningModule = parser.instantiate(Namespace(model=model)).model
    return stage


def _replace_outside_parts(arguments: Namespace) -> tuple[list[str], dict[str, int]]:
    """Put parts that need no files in place of pretrained ones from elsewhere, whose weights count as their files."""
    notes, sizes = [], {}
    for key, own in _OWN_PARTS.items():
        part = arguments.get(key)
        if part is None or part.class_path == own:
            continue
        name = part.class_path.rpartition(".")[2]
        paths = [Path(v) for v in vars(part.get("init_args") or Namespace()).values() if isinstance(v, str)]
        files = [f for p in paths for f in ([p] if p.is_file() else p.glob("*.safetensors"))]
        if files:
            sizes[name] = sum(f.stat().st_size for f in files)
        else:
            notes.append(f"{name} is not counted: its weights are not here")
        arguments[key] = Namespace(class_path=own)
    return notes, sizes


@contextmanager
def _configuration_folder(arguments: Namespace, notes: list[str]) -> Iterator[None]:
    """Have a folder with a configuration in place of a missing model's, which is taken for BAGEL-7B-MoT."""
    from hyperbagel.bagel.checkpoint import save_config
    from hyperbagel.bagel.config import BagelConfig
    from hyperbagel.bagel.tokenizer import Tokenizer
    from hyperbagel.scenes.vocabulary import tokenizer_folder

    if (resolve(arguments.model) / "llm_config.json").is_file():
        yield
        return
    notes.append(f"{arguments.model} is not here: taken for BAGEL-7B-MoT")
    with tempfile.TemporaryDirectory() as folder:
        save_config(BagelConfig(), folder)
        Tokenizer.from_pretrained(tokenizer_folder(), add_special_tokens=True).save_pretrained(folder)
        arguments.model = folder
        yield


def table(found: Planned, options: PlanOptions) -> str:
    """The plan in GiB a device."""
    how = "sharded over" if found.cluster.sharded else "on each of"
    plural = "s" if found.cluster.devices > 1 else ""
    lines = [f"{found.stage}, {how} {found.cluster.devices} device{plural}; GiB a device"]
    parts: dict[str, Any] = {**found.plan.fixed, "without documents": found.plan.total(0)}
    parts |= {f"{part}, a document": size for part, size in found.plan.per_document.items()}
    parts["with one document"] = found.plan.total(1)
    width = max(len(part) for part in parts)
    lines += [f"  {part.ljust(width)} {size / GIB:8.2f}" for part, size in parts.items()]
    batch = found.plan.largest_batch(int(options.memory * GIB))
    remedy = "shard over more devices" + ("" if found.adapted else ", or train adapters (--lora)")
    fits = f"{batch} documents a device" if batch else f"none: {remedy}"
    lines += [f"largest batch in {options.memory:g} GiB: {fits}", *(f"note: {note}" for note in found.notes)]
    return "\n".join(lines)
