"""The `hyperbagel` command on small settings, to run what the documents show in seconds instead of hours.

Run as a program with PYTHONPATH set to what should be tested. What a command reads, writes and depends on stays: shrunk
are numbers of updates, documents, pictures, questions and steps, and layers are not compiled.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
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
_NAMED = {name.lower(): name for name in _EVALUATIONS}
"""Their names among the callbacks that a configuration gives by name."""
_SMALL = {
    "size": FEW,
    "max_updates": 1,
    "every_n_updates": 1,
    "batch_size": 4,
    "num_workers": 0,
    "compile": False,
    "frequencies": 2,
}
_TRAINING = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]


def shrink(settings: Any, drawing: bool = False) -> Any:
    """Settings as YAML has them, with small numbers. drawing: whether they are of samplers."""
    if isinstance(settings, list):
        return [shrink(value, drawing) for value in settings]
    if not isinstance(settings, Mapping):
        return settings
    small = {
        key: min(value, _SMALL[key])
        if key in _SMALL and isinstance(value, int)
        else shrink(value, drawing or key in ("samplers", "rows"))
        for key, value in settings.items()
    }
    if drawing and small.get("steps", 0) > 6:
        small["steps"] = 2
    for key in _NAMED.keys() & small.keys():
        if isinstance(small[key], Mapping) and "class_path" not in small[key]:
            small[key] = merged(small[key], _EVALUATIONS[_NAMED[key]])
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
    from hyperbagel.cli.bases import BASES, content, with_bases
    from hyperbagel.cli.configs import with_found_configs

    training = arguments[0] in ("fit", "test", "predict")
    result = with_bases(with_found_configs(arguments)) if training else list(arguments)
    for i, argument in enumerate(result):
        option, _, file = argument.partition("=")
        if training and option == "--config":
            config = folder / f"{i}.yaml"
            settings = shrink(content(Path(file)))
            settings.pop(BASES, None)
            config.write_text(yaml.safe_dump(settings))
            result[i] = f"{option}={config}"
        elif argument == "--size":
            result[i + 1] = str(FEW)
    return result + (_TRAINING if arguments[0] == "fit" else [])


def run(arguments: list[str]) -> int:
    """The exit status of a command line, shrunk."""
    from hyperbagel.cli import main

    with tempfile.TemporaryDirectory() as folder:
        try:
            main(shrunk(arguments, Path(folder)))
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def serve() -> None:
    """Run command lines in processes that need not import everything anew.

    Each line of stdin is a folder, a file for the output and the arguments, as JSON; the answer is the exit status.
    """
    import hyperbagel.cli.trainer  # noqa: F401 - what takes seconds

    for line in sys.stdin:
        folder, output, arguments = json.loads(line)
        if (child := os.fork()) == 0:
            os.chdir(folder)
            with open(output, "wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            status = run(arguments)
            sys.stdout.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        sys.exit(run(sys.argv[1:]))
