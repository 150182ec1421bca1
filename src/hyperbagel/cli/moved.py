"""What the release before called classes and settings: its YAML and command lines go on working for one release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MODULES, _LOSSES, _TRAINING = "hyperbagel.modules", "hyperbagel.losses", "hyperbagel.training"

CLASSES = {
    f"{_MODULES}.pretrain.Pretraining": f"{_MODULES}.pretraining.Pretraining",
    f"{_MODULES}.consistency.CFGDistillation": f"{_MODULES}.consistency.cfg_distillation.CFGDistillation",
    f"{_MODULES}.consistency.TSCD": f"{_MODULES}.consistency.tscd.TSCD",
    f"{_MODULES}.adversarial_reward.ADP": f"{_MODULES}.adversarial_reward.adp.ADP",
    f"{_MODULES}.adversarial_reward.ReFL": f"{_MODULES}.adversarial_reward.refl.ReFL",
    f"{_MODULES}.pair_term.PairRegression": f"{_LOSSES}.pairs.PairRegression",
    f"{_MODULES}.pair_filter.PairFilter": f"{_LOSSES}.pairs.PairFilter",
    f"{_MODULES}.reward_term.RewardTerm": f"{_LOSSES}.reward.RewardTerm",
    f"{_MODULES}.schedules.WarmupStableDecay": f"{_TRAINING}.schedules.WarmupStableDecay",
    f"{_MODULES}.optimizers.BatchedMuon": f"{_TRAINING}.optimizers.BatchedMuon",
    f"{_MODULES}.optimizers.MuonWithAdamW": f"{_TRAINING}.optimizers.MuonWithAdamW",
    f"{_LOSSES}.terms.MeanSquaredError": f"{_LOSSES}.regression.Regression",
    f"{_LOSSES}.terms.Regression": f"{_LOSSES}.regression.Regression",
    f"{_LOSSES}.terms.DistributionMatching": f"{_LOSSES}.distribution_matching.DistributionMatching",
    f"{_LOSSES}.terms.Adversarial": f"{_LOSSES}.adversarial.Adversarial",
    f"{_LOSSES}.terms.Discrimination": f"{_LOSSES}.adversarial.Discrimination",
    "hyperbagel.callbacks.fidelity.ViTFeatures": "hyperbagel.bagel.vision.PooledFeatures",
}
"""Former class path -> the one of now."""

SETTINGS = {
    **{key: "method" for key in ("loss", "unroll", "tscd", "dmdo", "adp", "tuning")},
    **{key: f"method.{key}" for key in ("train", "start", "kl_weight", "ssim_weight", "decoder_only", "draft")},
    **{key: f"method.{key}" for key in ("vocabulary", "timestep_shift", "heads", "threshold", "sources")},
    "adp.echoes": "method.updates_per_batch",
    "optimizer": "student.optimizer",
    "scheduler": "student.scheduler",
    **{key: f"settings.{key}" for key in ("samplers", "compute", "seed")},
}
"""Former argument of a stage -> the one of now. No two stages used a name for different things."""

OF_TRAINER = {"gradient_clip_val": "student.clip", "accumulate_grad_batches": "student.accumulate"}
"""Option of the trainer -> argument of the stages that Lightning optimised."""

CONFIGS = {"cfg": "cfg_distillation", "draft": "draft_head", "tuning": "reward_tuning"}
"""Former name of a stage's configurations, without their folder -> the one of now, the stage's own."""

_WITH_ROWS = ("hyperbagel.callbacks.GenEval", "hyperbagel.callbacks.GEdit")
_FORMER_ROW = {"steps": 50, "shift": 3.0, "guidance": None}
"""What a row was where it said nothing; now it is as the stage's sampler there."""

_BY_LIGHTNING = ("AutoencoderTraining", "DraftTraining", "Pretraining")


class FormerNames:
    """Gives former names of classes and settings their present ones.

    Args:
        stage: class path of the stage that settings are for, None if unknown. Settings of others than hyperbagel's
            stages are left as they are.
    """

    def __init__(self, stage: str | None = None) -> None:
        self._own = stage is None or stage.startswith(f"{_MODULES}.")
        self._by_lightning = self._own and (stage is None or stage.rpartition(".")[2] in _BY_LIGHTNING)

    def in_settings(self, settings: Any) -> tuple[Any, dict[str, str]]:
        """The content of a YAML file by present names, and former -> present name of what it had under another."""
        found: dict[str, str] = {}
        settings = _with_classes(settings, found)
        if not self._own or not isinstance(settings, dict):
            return settings, found
        model, trainer = _mapping(settings.get("model")), _mapping(settings.get("trainer"))
        given = _mapping(model.get("init_args"))
        arguments = _moved(given, found)
        name = str(model.get("class_path", "")).rpartition(".")[2]
        if name in _BY_LIGHTNING or (not name and self._by_lightning):
            _take_over(trainer, arguments, found)
            if found and name and "student" not in given:  # what is not said was left to the former defaults
                _put(arguments, "student.clip", 0)
                _put(arguments, "student.scheduler", {"class_path": f"{_TRAINING}.schedules.WarmupStableDecay"})
        if found:
            parts = {"model": model | {"init_args": arguments} if arguments else model, "trainer": trainer}
            settings |= {key: part for key, part in parts.items() if part or key in settings}
        return settings, found

    def in_arguments(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Options of the command line by present names, and former -> present name of those that had another."""
        found: dict[str, str] = {}
        result = []
        for argument in arguments:
            option, equals, value = argument.partition("=")
            if (now := self._option(option)) is not None:
                found[option.lstrip("-")], option = now.lstrip("-"), now
            if (known := value if equals else option) in CLASSES:
                found[known] = CLASSES[known]
                option, value = (option, CLASSES[known]) if equals else (CLASSES[known], "")
            result.append(option + equals + value)
        return result, found

    def _option(self, option: str) -> str | None:
        """What an option is called now, None for one that is not former."""
        for prefix in ("--model.init_args.", "--model."):
            if self._own and option.startswith(prefix):
                place = _place(option.removeprefix(prefix))
                return None if place is None else prefix + place
        if self._by_lightning and (place := OF_TRAINER.get(option.removeprefix("--trainer."))):
            return f"--model.init_args.{place}"
        return None


def _with_classes(value: Any, found: dict[str, str]) -> Any:
    if isinstance(value, dict):
        inner = {key: _with_classes(item, found) for key, item in value.items()}
        return _with_rows(inner, found) if inner.get("class_path") in _WITH_ROWS else inner
    if isinstance(value, list):
        return [_with_classes(item, found) for item in value]
    if isinstance(value, str) and value in CLASSES:
        found[value] = value = CLASSES[value]
    return value


def _with_rows(callback: dict[str, Any], found: dict[str, str]) -> dict[str, Any]:
    """The settings of an evaluation, whose rows were `samplers`."""
    arguments = _mapping(callback.get("init_args"))
    former = arguments.pop("samplers", None)
    if former is None:
        return callback
    found[f"samplers of {callback['class_path']}"] = "rows"
    rows = {name: row and _FORMER_ROW | row for name, row in former.items()}
    return callback | {"init_args": arguments | {"rows": rows}}


def _take_over(trainer: dict[str, Any], arguments: dict[str, Any], found: dict[str, str]) -> None:
    """Move options of the trainer to the arguments of a stage, where one of them is not the trainer's default."""
    if trainer.get("gradient_clip_val") is None and trainer.get("accumulate_grad_batches") in (None, 1) and not found:
        return
    for option, place in OF_TRAINER.items():
        if (value := trainer.pop(option, None)) is not None:
            _put(arguments, place, value)
            found[f"trainer.{option}"] = f"model.init_args.{place}"


def _mapping(value: Any) -> dict[str, Any]:
    """A copy of a mapping, an empty one for anything else."""
    return dict(value) if isinstance(value, dict) else {}


def _place(key: str) -> str | None:
    """Where an argument of a stage with a dotted name is now, None if it is where it was."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if now := SETTINGS.get(".".join(parts[:length])):
            return ".".join((now, *parts[length:]))
    return None


def _moved(arguments: Mapping[str, Any], found: dict[str, str]) -> dict[str, Any]:
    """The arguments of a stage in their present places."""
    result = {key: value for key, value in arguments.items() if _place(key) is None}
    for key, value in arguments.items():
        if _place(key) is None:
            continue
        inner = value.items() if SETTINGS[key] == "method" and isinstance(value, dict) else [("", value)]
        for name, item in inner:
            former = f"{key}.{name}".rstrip(".")
            place = _place(former) or former
            _put(result, place, item)
            told = (former, place) if former in SETTINGS else (key, SETTINGS[key])
            found[f"model.init_args.{told[0]}"] = f"model.init_args.{told[1]}"
    return result


def _put(settings: dict[str, Any], place: str, value: Any) -> None:
    """Set a value with a dotted name, unless it is set; mappings on the way are copied."""
    first, _, rest = place.partition(".")
    if not rest:
        settings.setdefault(first, value)
        return
    settings[first] = _mapping(settings.get(first))
    _put(settings[first], rest, value)
