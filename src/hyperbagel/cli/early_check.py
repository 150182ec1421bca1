"""Finds settings that no class takes before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperbagel.cli.callback_names import FIRST, LAST
from hyperbagel.cli.explanation import UsageError, did_you_mean
from hyperbagel.cli.signatures import options

_OF_CLASS = ("class_path", "init_args", "dict_kwargs")
_PARTS = ("model", "data", "trainer", "callbacks")


class UnknownSettingError(Exception):
    """A setting that the class at its place does not take. close: a question, see `did_you_mean`."""

    def __init__(self, place: str, key: str, close: str) -> None:
        super().__init__(place, key, close)
        self.place, self.key, self.close = place, key, close


class SettingsCheck:
    """Looks through configurations and options in the order in which they are laid over each other.

    Only what is certain is refused. Classes whose source cannot be found or that take any keyword are left to the
    parser, and so are values.
    """

    def __init__(self) -> None:
        self._classes = {"trainer": "lightning.pytorch.trainer.trainer.Trainer"}
        self._classes |= {f"callbacks.{name}": path for name, path in (FIRST | LAST).items()}

    def file(self, settings: Mapping[str, Any], file: str) -> None:
        """Raises UsageError for a setting in a YAML file that the class it is meant for does not take."""
        try:
            self._parts(settings)
        except UnknownSettingError as error:
            close = error.close.replace("mean ", f"mean {error.place}.")
            raise UsageError(f"{file}: {error.place}.{error.key} is no setting{close}") from None

    def option(self, option: str, value: str) -> None:
        """Raises UsageError for an option such as --model.init_args.settings.max_update."""
        keys = option.removeprefix("--").split(".")
        settings: Any = value
        for key in reversed([*keys, "class_path"] if keys in (["model"], ["data"]) else keys):
            settings = {key: settings}
        try:
            self._parts(settings)
        except UnknownSettingError as error:
            parts = [part.removesuffix("+") for part in option.split(".")]
            before = ".".join(parts[: parts.index(error.key)])
            close = error.close.replace("mean ", f"mean {before}.")
            raise UsageError(f"no option {option}{close}") from None

    def _parts(self, settings: Mapping[str, Any]) -> None:
        for part, value in settings.items():
            if part in _PARTS:
                self._look(value, part, None)

    def _look(self, value: Any, place: str, declared: str | None) -> None:
        """place: of the value, by which later configurations mean the same; declared: class that its type names."""
        if isinstance(value, list):
            for number, item in enumerate(value):
                self._look(item, f"{place}[{number}]", declared)
        if not isinstance(value, Mapping):
            return
        if isinstance(chosen := value.get("class_path"), str) and chosen:
            self._classes[place] = chosen
        path = self._classes.get(place, declared)
        known = None if path is None else options(path)
        given = {key: item for key, item in value.items() if key not in _OF_CLASS}
        if isinstance(inner := value.get("init_args"), Mapping):
            given |= inner
        for written, item in given.items():
            key, _, deeper = str(written).removesuffix("+").partition(".")
            if known is not None and key not in known and key != "help":
                raise UnknownSettingError(place, key, did_you_mean(key, known))
            self._look({deeper: item} if deeper else item, f"{place}.{key}", None if known is None else known.get(key))
