"""Options by which further golden files are run through the same tests."""

from pathlib import Path

import pytest

FILE_OPTIONS = {
    "--geneval-cases": "GenEval cases (JSON lines) to check instead of the project's own copy",
    "--geneval-summary": "GenEval summaries (JSON) to check instead of the project's own copy",
    "--gedit-cases": "GEdit cases (JSON) to check instead of the project's own copy",
    "--fixture": "golden backbone file (safetensors) to check instead of the project's own copy",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add one option a kind of golden file; each is None when the project's own copy is meant."""
    group = parser.getgroup("golden files")
    for option, text in FILE_OPTIONS.items():
        group.addoption(option, type=Path, default=None, metavar="FILE", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a golden file that does not exist, before anything runs."""
    for option in FILE_OPTIONS:
        path = config.getoption(option)
        if path is not None and not path.is_file():
            raise pytest.UsageError(f"{option}: no such file: {path}")


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint folder of a nano model, with a tokenizer."""
    from hyperbagel.bagel.tokenizer import Tokenizer
    from hyperbagel.scenes.vocabulary import tokenizer_folder
    from tests.nano import nano_bagel

    folder = tmp_path_factory.mktemp("nano")
    nano_bagel().save_pretrained(folder)
    Tokenizer.from_pretrained(tokenizer_folder(), add_special_tokens=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def nano_branch(nano_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A branch of it with embedders of guidance scales that do something."""
    import torch

    from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
    from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, context_hash, save_branch
    from hyperbagel.bagel.model import Bagel

    model = Bagel.from_pretrained(nano_folder)
    branch = model.generation.copy()
    torch.manual_seed(5)  # of the embedders, whatever ran before
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    path = tmp_path_factory.mktemp("branch") / "branch.safetensors"
    save_branch(branch, BranchInfo("CFGDistillation", 0, base_hash(model), context=context_hash(model)), path)
    return str(path)
