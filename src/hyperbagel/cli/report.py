"""`hyperbagel report`: the results of finished runs in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hyperbagel.cli.errors import CommandParser
from hyperbagel.evaluation.reports import combined, read_report, tables, write_report
from hyperbagel.files import check_folder


def report(arguments: Sequence[str]) -> None:
    """Compare finished runs.

    Prints their tables side by side; with `--out` it also writes them. Raises FileNotFoundError or ValueError for a run
    without a report.
    """
    parser = CommandParser(prog="hyperbagel report", description="Tables of finished runs, side by side.")
    parser.add_argument("RUN", nargs="+", help="folder with a report.json, or such a file")
    parser.add_argument("--out", metavar="FOLDER", help="also write report.json and report.md there")
    options = parser.parse_args(list(arguments))
    if options.out is not None:
        check_folder(options.out)
    reports = {run: read_report(run) for run in options.RUN}
    print(tables(reports))
    if options.out is not None:
        write_report(combined(reports), Path(options.out))
