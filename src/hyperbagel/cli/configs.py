"""Configurations and examples that come with the package: found by name, listed and copied."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from hyperbagel.cli.errors import OneLineParser
from hyperbagel.cli.explanation import did_you_mean
from hyperbagel.cli.moved import CONFIGS

FOLDERS = ("configs", "examples")


def config_home() -> Path:
    """The folder that holds `configs` and `examples`: the package's, or for an editable install the repository."""
    package = Path(str(files("hyperbagel")))
    return next((place for place in (package, package.parents[1]) if (place / FOLDERS[0]).is_dir()), package)


def shipped_configs() -> dict[str, Path]:
    """Name -> file of all configurations, such as `scenes/tscd`; those of examples are called `examples/drift`.

    Those that begin with an underscore are what others share.
    """
    home = config_home()
    patterns = ("configs/**/*.yaml", "examples/*.yaml")
    return {_name(path.relative_to(home)): path for pattern in patterns for path in sorted(home.glob(pattern))}


def _name(place: str | Path) -> str:
    """`scenes/tscd` for `configs/scenes/tscd.yaml`; `examples` stays."""
    return Path(place).as_posix().removesuffix(".yaml").removeprefix("configs/")


def find_config(place: str | Path) -> Path:
    """The file of a configuration: `place` where a file stands there, else the shipped one of that name.

    Raises FileNotFoundError, which names similar ones, for neither.
    """
    return Path(place) if Path(place).is_file() else _shipped(place)


def _shipped(name: str | Path) -> Path:
    known = shipped_configs()
    if found := known.get(_name(name)):
        return found
    folder, slash, last = _name(name).rpartition("/")
    if found := known.get(now := folder + slash + CONFIGS.get(last, "")):
        warnings.warn(f"configuration {name} is now {now}; the next release knows that name only", FutureWarning, 2)
        return found
    raise FileNotFoundError(
        f"{name}: no such file, and no configuration of that name{did_you_mean(_name(name), known)} "
        "(`hyperbagel configs` lists them)"
    )


def with_found_configs(arguments: Sequence[str]) -> list[str]:
    """The trainer's arguments with names of configurations replaced by their files."""
    found, expected = [], False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if expected:
            argument = str(find_config(argument))
        elif equals and option in ("--config", "-c"):
            argument = f"{option}={find_config(value)}"
        expected = not expected and argument in ("--config", "-c")
        found.append(argument)
    return found


def description(config: Path) -> str:
    """The first sentence of the comment at the head of a configuration."""
    words: list[str] = []
    for line in config.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#")
        if text == line or not text.strip() or text.startswith("   "):  # no comment, an empty one, or a command
            break
        words += text.split()
        if words[-1].endswith((".", ":")):
            break
    return " ".join(words).partition(". ")[0].rstrip(".:")


def copy_config(name: str, to: str | None = None) -> list[Path]:
    """Copy a configuration, with code beside it, or a folder of them to work on; returns what was written.

    to: folder, or of one configuration also the file; default the place that it has in the repository, such as
    `configs/scenes/tscd.yaml`. Raises FileNotFoundError for an unknown name, FileExistsError before a file is replaced.
    """
    home, short = config_home(), _name(name)
    folder = home / short if short.split("/")[0] in FOLDERS else home / "configs" / short
    if folder.is_dir():
        sources = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    else:
        config = _shipped(name)
        folder, sources = config.parent, sorted(config.parent.glob(f"{config.stem}.*"))
    place = folder.relative_to(home) if to is None else Path(to)
    targets = [place / source.relative_to(folder) for source in sources]
    if place.suffix in (".yaml", ".yml"):
        targets = [place.with_suffix(source.suffix) for source in sources]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target}: already exists; name another place: hyperbagel configs copy {name} TO")
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return targets


def configs(arguments: Sequence[str]) -> None:
    """List the configurations that are shipped; copy one.

    Raises FileNotFoundError for an unknown name, FileExistsError before a file is replaced.
    """
    parser = OneLineParser("hyperbagel configs", description="Configurations that come with the package.")
    commands = parser.add_subparsers(dest="command", metavar="copy")
    copy = commands.add_parser("copy", help="copy a configuration, or a folder of them, to work on")
    copy.add_argument("name", metavar="NAME", help="such as scenes/cfg_distillation, scenes or examples")
    copy.add_argument("to", nargs="?", metavar="TO", help="folder or file; default as in the repository: configs/NAME")
    options = parser.parse_args(arguments)
    if options.command is not None:
        print("\n".join(str(path) for path in copy_config(options.name, options.to)))
        return
    known = {name: path for name, path in shipped_configs().items() if not path.name.startswith("_")}
    width = max(map(len, known), default=0)
    print("\n".join(f"{name.ljust(width)}  {description(path)}" for name, path in known.items()))
