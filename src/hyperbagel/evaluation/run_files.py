"""What a run leaves in its folder beside its report: settings, cost, curves and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from hyperbagel.evaluation.reports import LOGS, REPORT
from hyperbagel.evaluation.tables import Table

Curve: TypeAlias = list[tuple[float, float]]
"""Points (student updates, value) of one run."""

_OF_PLACE = ("trainer.logger", "trainer.default_root_dir", "config", "ckpt_path")
"""Settings that say where a run goes, and differ in any two."""
_LONGEST = 60


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, of which each file may be missing. logs: where curves and settings are, if in another one."""

    folder: Path
    logs: Path | None = None

    @staticmethod
    def of(run: str | Path) -> RunFolder:
        """Of a run that is named by its folder or by its report, which tells where its logs are."""
        folder = Path(run) if Path(run).is_dir() else Path(run).parent
        file = folder / REPORT if Path(run).is_dir() else Path(run)
        logs = json.loads(file.read_text(encoding="utf-8")).get(LOGS) if file.is_file() else None
        return RunFolder(folder, None if logs is None else folder / logs)

    @property
    def _run(self) -> Path:
        return self.logs or self.folder

    def settings(self) -> dict[str, str]:
        """All settings by dotted name, as `config.yaml` has them."""
        file = self._run / "config.yaml"
        if not file.is_file():
            return {}
        return dict(_flat(yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))))

    def cost(self) -> dict[str, str]:
        """What `provenance.json` tells of time and size."""
        file = self._run / "provenance.json"
        if not file.is_file():
            return {}
        told = json.loads(file.read_text(encoding="utf-8"))
        parameters = told.get("parameters", {})
        shown = {
            "stage": str(told.get("stage", "")).rpartition(".")[2],
            "updates": told.get("student_step"),
            "trained": parameters.get("trained") and f"{parameters['trained'] / 1e6:.2f} M",
            "minutes": told.get("seconds") and f"{told['seconds'] / 60:.1f}",
            "CPU minutes": told.get("cpu_seconds") and f"{told['cpu_seconds'] / 60:.1f}",
            "on": told.get("device"),
            "started": told.get("started"),
        }
        return {name: str(value) for name, value in shown.items() if value is not None}

    def curves(self) -> dict[str, Curve]:
        """Scalars of two points and more by tag, as TensorBoard's event files have them, or else `metrics.csv`."""
        read = _of_events if any(self._run.glob("events.out.tfevents.*")) else _of_csv
        return {tag: curve for tag, curve in read(self._run).items() if len({step for step, _ in curve}) > 1}

    def pictures(self) -> dict[str, Path]:
        """Sheets of pictures by what they are of, such as `geneval`."""
        return {file.stem: file for file in sorted(self.folder.glob("*.png"))}


def _of_events(folder: Path) -> dict[str, Curve]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes a second

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _of_csv(folder: Path) -> dict[str, Curve]:
    """As Lightning's `CSVLogger` writes them: a column for each tag, most cells of a line empty."""
    curves: dict[str, Curve] = {}
    if (file := folder / "metrics.csv").is_file():
        with file.open(newline="", encoding="utf-8") as lines:
            for line in csv.DictReader(lines):
                for tag, value in line.items():
                    if value and tag != "step":
                        curves.setdefault(tag, []).append((float(line["step"]), float(value)))
    return curves


def differences(runs: Mapping[str, RunFolder]) -> Table | None:
    """The settings in which runs differ, one column a run; None where they do not, or have none."""
    settings = {name: found for name, run in runs.items() if (found := run.settings())}
    names = list(dict.fromkeys(key for found in settings.values() for key in found))
    rows = {
        key: {run: found.get(key, "-") for run, found in settings.items()}
        for key in names
        if len({found.get(key) for found in settings.values()}) > 1
    }
    return Table("settings that differ", rows) if rows else None


def costs(runs: Mapping[str, RunFolder]) -> Table | None:
    """What runs took; None where none of them tells."""
    rows = {name: cost for name, run in runs.items() if (cost := run.cost())}
    return Table("runs", rows) if rows else None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if any(name == place or name.startswith(f"{place}.") for place in _OF_PLACE):
        return
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{name}[{number}]")
    else:
        text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else value
        yield name, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
