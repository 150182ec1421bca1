"""The command at nano size, what it counts as limits, and what it does when something fails."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.quantized import Quantization
from hyperbagel.bench import limits
from hyperbagel.bench.answers import Forced
from hyperbagel.bench.device import Meter, Peaks
from hyperbagel.bench.exactness import distance, evaluation, in_float32
from hyperbagel.bench.pictures import edits, generations, one_pass
from hyperbagel.bench.run import PARTS, measure, shown
from hyperbagel.bench.subject import Figures, Subject, random_draft, random_model, student_of, text
from hyperbagel.cli import main
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.pipeline.device import Runtime
from hyperbagel.pipeline.economy import Offload
from hyperbagel.pipeline.painter import seeded_noise

CPU = Runtime("cpu", "float32")


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = random_model("nano", CPU).requires_grad_(False)
    return Subject(model, student_of(model), Meter(model.device), Peaks(1e11, 1e10), quick=True)


def run(out: Path, *options: str) -> dict[str, list[Figures]]:
    main(["bench", "--preset", "nano", "--quick", "--device", "cpu", "--dtype", "float32", *options, "--out", str(out)])
    content = json.loads(out.read_text())
    assert not [record for part in PARTS for record in content.get(part, ()) if "error" in record]
    return content


def test_some_parts_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = run(tmp_path / "bench.json", "--only", "pass,pictures")
    lines = capsys.readouterr().out.splitlines()
    assert list(content) == ["hyperbagel", "device", "pass", "pictures"]
    assert max(map(len, lines[:-1])) <= 100
    assert sum(line.startswith("### ") for line in lines) == 2
    assert any(line.startswith("~ of fewer evaluations") for line in lines)


def test_what_draws_may_be_compiled_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Bagel] = []
    monkeypatch.setattr("hyperbagel.pipeline.economy.compile_drawing", compiled.append)
    run(tmp_path / "bench.json", "--only", "pass", "--compile")
    assert len(compiled) == 1


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_what_rounding_costs_is_measured_beside_float32(quantize: Quantization | None, tmp_path: Path) -> None:
    """Of rounded weights beside that of bfloat16 alone; their memory beside the plan."""
    options = ["--only", "pass,pictures", "--dtype", "bfloat16"]
    if quantize is not None:
        pytest.importorskip("torchao")
        options += ["--offload", "--quantize", quantize]
    content = run(tmp_path / "bench.json", *options)
    (record,) = content["pass"]
    if quantize is None:
        assert content["device"]["how"] == [] and "distance_unrounded" not in record
        assert 0 < record["distance"] < 0.05
    else:
        assert content["device"]["how"] == ["offload", "nf4"]
        assert 0 < record["distance_unrounded"] < record["distance"] < 0.5
    assert all(("planned_bytes" in r) == (r["evaluations"] < 100) for r in content["pictures"])


def test_a_pass_in_float32_takes_no_second_model(subject: Subject) -> None:
    """And is what a model in float32 computes."""
    model = copy.deepcopy(subject.model).bfloat16()
    model.generation.layers[0].get_submodule("input.q_proj").weight.data += 0.01
    branch = student_of(model)
    exact, exact_branch = in_float32(model, branch)
    layers = [exact.understanding.layers, exact.generation.layers, exact_branch.layers]
    shared = {id(value) for value in model.parameters()}
    assert all(id(value) in shared for part in layers for value in part.parameters())
    whole, whole_branch = copy.deepcopy((model, branch))
    expected, _ = evaluation(whole.float(), whole_branch.float(), text())
    got, _ = evaluation(exact, exact_branch, text())
    with torch.inference_mode():
        assert distance(got(), expected()) < 1e-6
    assert {value.dtype for value in (*model.parameters(), *branch.parameters())} == {torch.bfloat16}


def test_weights_that_are_not_there_or_rounded_are_not_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--preset", "nano", "--only", "updates", "--offload", "--out", str(tmp_path / "a.json")])
    assert "--only updates: stages train on weights" in capsys.readouterr().err


def test_the_bench_moves_what_a_task_needs(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """As drawing does."""
    needed: list[tuple[nn.Module, ...]] = []
    offload = Offload(subject.model.device, [])
    monkeypatch.setattr(offload, "need", lambda *parts: needed.append(parts))
    model = subject.model
    frugal = replace(subject, offload=offload)
    (_, passes), drawings, edited = *one_pass(frugal), list(generations(frugal)), list(edits(frugal))
    passes()
    assert needed == [(subject.branch,)]
    needed.clear()
    drawings[3][1]()
    assert needed[:3] == [(), (subject.branch,), (model.autoencoder,)]
    needed.clear()
    edited[3][1]()
    assert needed[:3] == [(model.generation, model.autoencoder), (subject.branch,), (model.autoencoder,)]


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = run(tmp_path / "bench.json")
    assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= 100
    assert [(r["evaluations"], r["batch"]) for r in content["pictures"]] == [
        (n, batch) for batch in (1, 4) for n in (100, 6, 4, 1)
    ]
    assert {r["evaluations"] for r in content["edits"]} == {132, 6, 4, 1}
    assert all(r["measured_evaluations"] < 20 for r in content["edits"] if r["evaluations"] == 132)
    for record in (*content["pictures"], *content["edits"]):
        assert sum(record[part] for part in ("prefill", "denoising", "decoding")) == pytest.approx(1)
    lengths = {r["what"]: r["acceptance_length"] for r in content["answers"] if "acceptance_length" in r}
    assert lengths["chain of 7, 8 a round"] == 8 and lengths["chain of 7, 1 a round"] == 1
    assert 3.5 < lengths["chain of 4, 3.77 a round"] <= 4  # 32 tokens end inside a round
    assert len(content["updates"]) == 6 and all(r["planned_bytes"] > 0 for r in content["updates"])


def test_a_part_that_fails_is_told_of_and_the_others_go_on(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def large() -> Figures:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    def never(_: Subject) -> object:
        raise ImportError("training with LoRA needs peft: pip install peft")

    parts = {"pass": lambda _: iter([({"what": "one pass"}, large), ({"what": "another"}, lambda: {"ms": 2.0})])}
    monkeypatch.setattr("hyperbagel.bench.run.PARTS", parts | {"updates": never})
    results = measure(subject, ["pass", "updates"])
    first, second = results.parts["pass"]
    assert first["error"] == "OutOfMemoryError: CUDA out of memory" and second == {"what": "another", "ms": 2.0}
    text = results.markdown()
    assert "one pass: OutOfMemoryError: CUDA out of memory" in text and "pip install peft" in text


def test_parts_of_no_such_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--preset", "nano", "--only", "pas,answers", "--out", str(tmp_path / "a.json")])
    assert "--only pas: no such part; did you mean pass?" in capsys.readouterr().err


def test_operations_are_those_of_the_networks(subject: Subject) -> None:
    """Counted by PyTorch, where its counter knows what ran: attention is left out of both."""
    model, branch, tokens = subject.model, subject.branch, subject.latents
    context = model.prefill(subject.prompts(1))
    grid = model.latent_grid([subject.size])
    x_t, t = seeded_noise(grid, [0], model.config.latent_token_dim), torch.ones(1)
    scales = {TEXT_SCALE: t, IMAGE_SCALE: t}
    with FlopCounterMode(display=False) as counter:
        model.velocity(x_t, t, context, grid, branch, scales)
    linear = sum(count for op, count in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    embedders = 3 * 2 * limits.linear_numbers(branch.time_embedder)
    attention = limits.attention_operations(
        model.config.llm, tokens + limits.MARKERS, context.length + tokens + limits.MARKERS
    )
    counted = limits.pass_operations(model, tokens, context.length) - attention
    assert linear - embedders in (counted, counted + attention)  # where attention runs as matrix products


def test_bytes_of_a_token_are_those_of_what_decodes(subject: Subject) -> None:
    model: Bagel = subject.model
    weights = (*model.understanding.layers.parameters(), model.understanding.lm_head.weight)
    large = sum(weight.nbytes for weight in weights if weight.ndim == 2)
    context = model.prefill(subject.prompts(1))
    cache = context.past.keys.nbytes + context.past.values.nbytes
    assert limits.token_bytes(model, context.length, 3) == large + 3 * cache
    lm_head = model.understanding.lm_head.weight.nbytes
    rounded = limits.token_bytes(model, context.length, 3, "int8") - 3 * cache - lm_head
    assert (large - lm_head) / 4 < rounded < (large - lm_head) / 3  # a byte for four, and scales


@pytest.mark.parametrize("mean", [1.0, 2.5, 5.0])
def test_a_forced_run_accepts_as_many_as_it_is_told(subject: Subject, mean: float) -> None:
    model = subject.model
    speculator = Speculator(model, random_draft(model), SpeculationSettings(4))
    context, settings = speculator.prefill(subject.questions(2)), DecodingSettings(40, stop=())
    run = Forced(speculator.engine(settings), context, settings, None, [model.config.tokens.bos])
    run.mean = mean
    assert [len(answer) for answer in run.answer()] == [40, 40]
    assert speculator.statistics.acceptance_length == pytest.approx(mean, abs=0.15)


def test_the_branch_that_stands_for_a_distilled_one_costs_no_weights(subject: Subject) -> None:
    shared = {id(parameter) for parameter in subject.model.generation.parameters()}
    own = [name for name, parameter in subject.branch.named_parameters() if id(parameter) not in shared]
    assert subject.branch.guided and all("_scale_embedder" in name for name in own)


def test_what_was_measured_in_part_is_marked() -> None:
    record = {"evaluations": 100, "batch": 4, "seconds": 12.34, "measured_evaluations": 10}
    assert shown(record) == ("100 evaluations, batch 4", {"s": "~12.3"})
