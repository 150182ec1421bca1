"""Makes all measurements, whatever fails, and shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

import hyperbagel
from hyperbagel.bench.answers import answers
from hyperbagel.bench.pictures import edits, generations, one_pass
from hyperbagel.bench.subject import Figures, Measurement, Subject
from hyperbagel.evaluation.tables import Table

Part = Callable[[Subject], Iterator[Measurement]]


def _updates(subject: Subject) -> Iterator[Measurement]:
    from hyperbagel.bench.updates import updates  # imports Lightning, which the other parts do without

    return updates(subject)


PARTS: Final[Mapping[str, Part]] = {
    "pass": one_pass,
    "pictures": generations,
    "edits": edits,
    "answers": answers,
    "updates": _updates,
}
"""What can be measured, by the name that `--only` takes."""

TITLES: Final[Mapping[str, str]] = {
    "pass": "one pass, a picture after a prompt",
    "pictures": "pictures from prompts",
    "edits": "edits",
    "answers": "answers about a picture",
    "updates": "a training batch of one document, with adapters",
}


@dataclass
class Results:
    """device: what measured, and its peaks; parts: by name, a record each measurement, with `error` where it failed."""

    device: dict[str, Any]
    parts: dict[str, list[Figures]] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return {"hyperbagel": hyperbagel.__version__, "device": self.device, **self.parts}

    def markdown(self) -> str:
        """As tables, less than 100 columns wide."""
        device = self.device
        how = "".join(f", {word}" for word in device["how"])
        peaks = f"Matrix products reach {device['matmul'] / 1e12:.4g} TFLOP/s, copies {device['copy'] / 1e9:.4g} GB/s."
        lines = [f"{device['name']}, {device['dtype']}, PyTorch {device['torch']}{how}", "", peaks]
        for name, records in self.parts.items():
            rows: dict[str, dict[str, str]] = {}
            for record in records:
                label, figures = shown(record)
                rows[label] = figures
            lines += ["", Table(TITLES[name], rows).markdown()]
            failed = [f"{shown(record)[0]}: {record['error']}" for record in records if "error" in record]
            lines += ["", *failed] if failed else []
        if any("measured_evaluations" in record for records in self.parts.values() for record in records):
            lines += ["", "~ of fewer evaluations, whose denoising was counted as many times as there are more"]
        return "\n".join(lines)


def measure(subject: Subject, parts: Sequence[str], tell: Callable[[str], object] = str) -> Results:
    """All measurements of some of `PARTS`; one that fails is told of in its record, and the others go on.

    tell: gets a line for each as soon as it is done.
    """
    runtime = subject.runtime
    how = [name for name in ("compile", "offload") if getattr(runtime, name)]
    device = {
        "name": subject.meter.name(),
        "torch": torch.__version__,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "how": [*how, *([] if runtime.quantize is None else [runtime.quantize])],
        "matmul": subject.peaks.matmul,
        "copy": subject.peaks.copy,
    }
    results = Results(device)
    for name in parts:
        records = results.parts[name] = []
        for what, work in _measurements(PARTS[name], subject):
            subject.meter.restart_memory()
            records.append(what | _result(work))
            label, figures = shown(records[-1])
            tell(f"{name}: {label}: " + ", ".join(f"{column} {text}".strip() for column, text in figures.items()))
    return results


def _measurements(part: Part, subject: Subject) -> Iterator[Measurement]:
    """Those of a part; where it cannot even begin, one that says so."""
    try:
        yield from part(subject)
    except Exception as error:  # what is measured may fail in any way, such as for memory
        failed = _told(error)
        yield {}, lambda: failed


def _result(work: Callable[[], Figures]) -> Figures:
    try:
        return work()
    except Exception as error:
        return _told(error)


def _told(error: Exception) -> Figures:
    """Of memory that did not suffice the first sentence alone; the traceback goes with the error."""
    text = (str(error).splitlines() or [""])[0]
    return {"error": f"{type(error).__name__}: {text.partition('. ')[0][:200]}"}


def shown(record: Figures) -> tuple[str, dict[str, str]]:
    """What a record is of, and its figures as texts."""
    name = record.get("what") or record.get("stage")
    if name is None and "evaluations" in record:
        count = record["evaluations"]
        name = f"{count} evaluation{'s' * (count > 1)}"
    label = f"{name or 'all'}{', batch ' + str(record['batch']) if 'batch' in record else ''}"
    if "error" in record:
        return label, {"": "failed"}
    figures = {header: form(record[key]) for key, (header, form) in COLUMNS.items() if record.get(key) is not None}
    if "measured_evaluations" in record:
        figures["s"] = f"~{figures['s']}"
    return label, figures


def _plain(number: float) -> str:
    return f"{number:.0f}" if number >= 1000 else f"{number:.2g}" if number < 0.01 else f"{number:.3g}"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _small_percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x"


COLUMNS: Final[Mapping[str, tuple[str, Callable[[float], str]]]] = {
    "ms": ("ms", _plain),
    "limit_ms": ("limit", _plain),
    "share_of_matmul": ("of matmul", _percent),
    "distance": ("off float32", _small_percent),
    "distance_unrounded": ("unrounded", _small_percent),
    "seconds": ("s", _plain),
    "limit_seconds": ("limit", _plain),
    "prefill": ("prefill", _percent),
    "denoising": ("denoise", _percent),
    "decoding": ("decode", _percent),
    "tokens_per_second": ("tokens/s", _plain),
    "limit_tokens_per_second": ("limit", _plain),
    "ms_per_round": ("ms/round", _plain),
    "round_in_plain_tokens": ("in tokens", _plain),
    "speedup": ("speed", _times),
    "peak_bytes": ("peak GiB", _gib),
    "planned_bytes": ("planned", _gib),
}
"""Figure -> the head of its column, and how it is shown."""
