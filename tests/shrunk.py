"""The `hyperbagel` command on small settings, to run what the documents show in seconds instead of hours.

Run as a program with PYTHONPATH set to what shall be tested. What a command reads, writes and depends on stays: shrunk
are numbers of updates, documents, pictures, questions and steps, and layers are not compiled.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FEW = 8
_SCENES = "hyperbagel.datamodules.scenes.SceneSource"
_QUESTIONS = {"split": "test", "size": FEW, "weights": {"caption": 1, "question": 1, "yes_no": 1}}
_EVALUATIONS: dict[str, dict[str, Any]] = {
    "GenEval": {"prompts": {"limit": 6}, "settings": {"images_per_prompt": 1}},
    "GEdit": {"data": {"per_kind": 1, "languages": ["en"]}},
    "Understanding": {"samples": {"class_path": _SCENES, "init_args": _QUESTIONS}},
    "Speculation": {"questions": 2, "warmup": 1},
}
_SMALL = {"size": FEW, "max_updates": 1, "batch_size": 4, "num_workers": 0, "compile": False, "frequencies": 2}
_TRAINING = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]


def shrink(settings: Any, inside: str = "") -> Any:
    """Settings as YAML has them, with small numbers. inside: the key above them."""
    if isinstance(settings, list):
        return [shrink(value, inside) for value in settings]
    if not isinstance(settings, Mapping):
        return settings
    small = {
        key: min(value, _SMALL[key]) if key in _SMALL and isinstance(value, int) else shrink(value, inside or key)
        for key, value in settings.items()
    }
    if inside == "samplers" and small.get("steps", 0) > 6:
        small["steps"] = 2
    name = str(small.get("class_path", "")).rpartition(".")[2]
    if name in _EVALUATIONS:
        small["init_args"] = merged(small.get("init_args") or {}, _EVALUATIONS[name])
    return small


def merged(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them, key by key."""
    result = dict(settings)
    for key, value in others.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both and "class_path" not in value else value
    return result


def shrunk(arguments: list[str], folder: Path) -> list[str]:
    """A command line of `hyperbagel` that does little; changed configurations are written to a folder."""
    from hyperbagel.cli.configs import find_config

    result = list(arguments)
    for i, argument in enumerate(arguments[:-1]):
        if arguments[0] in ("fit", "test") and argument == "--config":
            config = folder / f"{i}.yaml"
            config.write_text(yaml.safe_dump(shrink(yaml.safe_load(find_config(arguments[i + 1]).read_text()))))
            result[i + 1] = str(config)
        elif argument == "--size":
            result[i + 1] = str(FEW)
    return result + (_TRAINING if arguments[0] == "fit" else [])


def main() -> None:
    from hyperbagel.cli import main as hyperbagel

    with tempfile.TemporaryDirectory() as folder:
        hyperbagel(shrunk(sys.argv[1:], Path(folder)))


if __name__ == "__main__":
    main()
