"""A setting that occurs twice in YAML is refused, whoever reads it."""

from pathlib import Path

import pytest
import yaml

from hyperbagel.cli.configs import shipped_configs
from hyperbagel.cli.main import main
from hyperbagel.cli.repeated_keys import RepeatedKeyError, check_repeated_keys
from hyperbagel.cli.trainer import read_config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3: a was set before, in line 1; remove one of the two"),
        ("trainer:\n  max_steps: 5\n# later:\ntrainer: {max_steps: 1}\n", r"line 4: trainer was set before, in line 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", r"line 4: a\.b was set before, in line 2"),
        ("a: {b: 1,\n c: 2,\n b: 3}\n", r"line 3: a\.b was set before, in line 1"),
        (
            "callbacks:\n- class_path: X\n  init_args: {n: 1,\n    n: 2}\n",
            r"line 4: callbacks\.\[0\]\.init_args\.n was",
        ),
        ("a.b: 1\na:\n  b: 2\n", r"line 3: a\.b was set before, in line 1"),
        ("a:\n  b: 2\na.b: 1\n", r"line 3: a\.b was set before, in line 2"),
        ("'a': 1\na: 2\n", r"line 2: a was set before"),
        ('{"a": 1,\n "a": 2}', r"line 2: a was set before"),
        ("base: &base\n  x: 1\n  x: 2\nuse:\n  <<: *base\n", r"line 3: base\.x was set before"),
        ("use: &use\n  <<: {y: 1}\n  x: 1\n  x: 2\n", r"line 4: use\.x was set before"),
        ("a: 1\na: 1\n", r"line 2: a was set before"),  # equal values too: one of them will be changed one day
        ("a: null\nb:\na: {}\n", r"line 3: a was set before"),
        ("? a\n: 1\n? a\n: 2\n", r"line 3: a was set before"),
    ],
)
def test_a_setting_that_occurs_twice(text: str, message: str) -> None:
    with pytest.raises(RepeatedKeyError, match=message):
        check_repeated_keys(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: {x: 1}\nb: {x: 1}\n",
        "- {x: 1}\n- {x: 1}\n",
        "base: &base {x: 1, y: 2}\nuse:\n  <<: *base\n  x: 3\n",
        "one: &one {x: 1}\ntwo: &two {x: 2}\nuse:\n  <<: *one\n  <<: *two\n",
        "callbacks: [1]\ncallbacks+: [2]\n",
        "a: &a [1, *a]\n",
        "",
        "just text: with a colon",
        "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'])}]\n" for i in range(30)),  # 9^29 items
    ],
)
def test_what_only_looks_like_it(text: str) -> None:
    check_repeated_keys(text)


def test_all_configurations_say_everything_once() -> None:
    for path in shipped_configs().values():
        check_repeated_keys(path.read_text(encoding="utf-8"), str(path))


def test_a_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("trainer: {max_steps: 500}\n\n\ntrainer: {max_steps: 1}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "a.yaml")])
    error = capsys.readouterr().err
    assert "a.yaml, line 4: trainer was set before, in line 1" in error and "Traceback" not in error


def test_settings_are_read_as_before_otherwise(tmp_path: Path) -> None:
    config = yaml.safe_load(next(iter(shipped_configs().values())).read_text(encoding="utf-8"))
    assert config and read_config([shipped_configs()["nano/generation"]]).trainer.max_steps


@pytest.mark.parametrize("value", ["{caption: 1, caption: 2}", '{"caption": 1, "caption": 2}'])
def test_a_value_of_the_command_line_is_refused(value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["data", "scenes", str(tmp_path / "out"), "--weights", value])
    assert "caption was set before" in capsys.readouterr().err and not (tmp_path / "out").exists()
