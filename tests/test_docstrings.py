"""Every public name has a docstring with an example, and the examples do what they show.

Public are the classes and functions that `hyperbagel` exports, those that the packages of the reference list in
`__all__`, and those that the documentation links to.
"""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest
import torch

import hyperbagel
from hyperbagel.bagel.segments import TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.callbacks.evaluation import Run
from hyperbagel.datamodules.packing import pack
from hyperbagel.datamodules.pipeline import DocumentBuilder, Formatting
from hyperbagel.datamodules.scenes import SceneSource
from hyperbagel.datamodules.sources import DrawnSamples
from hyperbagel.evaluation.geneval import PromptSet, build_report
from hyperbagel.evaluation.geneval.report import ImageResult, RunInfo
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.scenes.prompts import geneval_prompts
from tests.runs import nano_folder
from tests.test_plain_markdown import ROOT, named, reference_links

ELLIPSIS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def documented() -> Iterator[str]:
    """The packages of the reference, and those inside of them."""
    pages = [page.read_text() for page in ROOT.glob("docs/reference/*.md")]
    for name in (found for page in pages for found in re.findall(r"^::: ([\w.]+)", page, re.M)):
        package = import_module(name)
        yield name
        yield from (info.name for info in walk_packages(package.__path__, f"{name}.") if info.ispkg)


def public() -> dict[str, Any]:
    """Where each public class or function was defined, and what it is."""
    objects = [getattr(hyperbagel, name) for name in hyperbagel.__all__]
    for name in documented():
        package = import_module(name)
        objects += [getattr(package, exported) for exported in getattr(package, "__all__", ())]
    objects += [named(path) for _, path in reference_links()]
    found = {
        f"{one.__module__}.{one.__qualname__}": one for one in objects if inspect.isclass(one) or inspect.isroutine(one)
    }
    return dict(sorted(found.items()))  # links come as a set, and processes that share the tests need one order


PUBLIC = public()


def examples_know(folder: Path) -> Callable[[], dict[str, Any]]:
    """What examples take for granted; made once, the names are each example's own. folder: for files of the model."""
    place = nano_folder(folder / "nano")
    stage = CFGDistillation(model=place)
    builder = DocumentBuilder(Formatting().for_model(place))

    def built(kind: str) -> Any:
        return builder.build(DrawnSamples("scenes", SceneSource(size=1, weights={kind: 1.0})).read(0))

    prompts = PromptSet.from_metadata(geneval_prompts(), "scenes").thinned(6)
    results = [ImageResult(0, 0, "colors", "{}"), ImageResult(0, 1, "colors", "{}", ("no circle",))]
    names = {
        "torch": torch,
        "Path": Path,
        "folder": place,
        "model": stage.model,
        "episode": stage.begin(pack([built("generation")], "scenes", []).unpack()),
        "document": [TextSegment(torch.tensor([5, 6, 7]))],
        "built": built("generation"),
        "answers": pack([built("question")], "scenes", []).unpack(),
        "run": Run(stage, Tokenizer.from_pretrained(place), 0, 1),
        "prompts": prompts,
        "report": build_report(results, RunInfo("mine", "", 1, 2, 0)),
    }
    return lambda: dict(names)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, Any]]:
    return examples_know(tmp_path_factory.mktemp("examples"))


def test_what_is_public_is_what_the_documentation_speaks_of() -> None:
    assert {"hyperbagel.pipeline.pipeline.load", "hyperbagel.modules.dmdo.DMDO", "hyperbagel.callbacks.ema.EMA"} <= set(
        PUBLIC
    )
    assert len(PUBLIC) >= 120


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_runs(
    name: str, known: Callable[[], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = import_module(PUBLIC[name].__module__)
    text = inspect.getdoc(PUBLIC[name]) if "__doc__" in vars(PUBLIC[name]) else PUBLIC[name].__doc__
    example = doctest.DocTestParser().get_doctest(text or "", vars(module) | known(), name, module.__file__, 0)
    assert example.examples, f"{name} has no example in its docstring"
    told: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=ELLIPSIS).run(example, out=told.append)
    assert not told, "".join(told)
