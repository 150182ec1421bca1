"""Pictures and tables for loggers: TensorBoard's, and all that take them as Lightning's `WandbLogger` does, by
`log_image` and `log_table`. Others are passed over; the run's folder has both in any case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from hyperbagel.evaluation.tables import MISSING, Table


def log_pictures(logger: Logger, pictures: Mapping[str, Tensor], captions: Sequence[str], step: int) -> None:
    """Log pictures (3, H, W) uint8 by tag. captions: what is in each, in the order of its parts."""
    if isinstance(logger, TensorBoardLogger):
        for tag, picture in pictures.items():
            logger.experiment.add_image(tag, picture, step)
    elif callable(log_image := getattr(logger, "log_image", None)):
        told = {"caption": [numbered(captions)]} if captions else {}
        for tag, picture in pictures.items():
            log_image(key=tag, images=[to_pil_image(picture)], step=step, **told)


def log_captions(logger: Logger, tag: str, captions: Sequence[str], step: int) -> None:
    """Log what is in pictures, for TensorBoard, which has no captions of its own."""
    if isinstance(logger, TensorBoardLogger) and captions:
        logger.experiment.add_text(tag, numbered(captions), step)


def log_table(logger: Logger, tag: str, table: Table, step: int) -> None:
    """Log a table; columns of plain numbers as such, so that they can be sorted by."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(tag, table.markdown(), step)
    elif callable(log := getattr(logger, "log_table", None)):
        (_, *columns), *lines = table.lines()
        names, *figures = zip(*lines, strict=True)
        data = zip(names, *map(_numbers, figures), strict=True)
        log(key=tag, columns=["row", *columns], data=[list(row) for row in data], step=step)


def flush(logger: Logger) -> None:
    """Have what was logged in its file, where TensorBoard would wait."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.flush()


def numbered(captions: Sequence[str]) -> str:
    """A numbered list in Markdown."""
    return "\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1))


def _numbers(figures: Sequence[str]) -> Sequence[float | str | None]:
    """A column as numbers, None where there is none, if it holds nothing else: loggers want one type for each."""
    try:
        return [None if figure == MISSING else float(figure) for figure in figures]
    except ValueError:
        return figures
