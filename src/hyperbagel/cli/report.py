"""`hyperbagel report`: the results of finished runs in one table, and on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hyperbagel.cli.errors import OneLineParser
from hyperbagel.files import check_file, check_folder

_MOST = 30
"""Settings that are listed in a terminal; the page has all of them."""


def report(arguments: Sequence[str]) -> None:
    """Compare finished runs.

    Prints their tables side by side, and the settings in which they differ; `--out` and `--html` write them too. Raises
    FileNotFoundError or ValueError for a run without a report, WriteError for places that cannot be written to.
    """
    parser = OneLineParser(prog="hyperbagel report", description="Tables of finished runs, side by side.")
    parser.add_argument("RUN", nargs="+", help="folder with a report.json, or such a file")
    parser.add_argument("--out", metavar="FOLDER", help="also write report.json and report.md there")
    parser.add_argument(
        "--html",
        metavar="FILE",
        nargs="?",
        const="",
        help="also write a page with pictures, tables and curves; without FILE, report.html in FOLDER, or here",
    )
    parser.add_argument("--brief", action="store_true", help="print one narrow table of the figures that matter most")
    options = parser.parse_args(list(arguments))
    file = None if options.html is None else Path(options.html or Path(options.out or ".") / "report.html")
    if options.out is not None:
        check_folder(options.out)
    if file is not None:
        check_file(file)
    _report(options.RUN, options.out, file, options.brief)


def _report(runs: Sequence[str], out: str | None, file: Path | None, narrow: bool) -> None:
    from hyperbagel.evaluation.page import write_page
    from hyperbagel.evaluation.reports import brief, combined, markdown, read_report, tables, write_report
    from hyperbagel.evaluation.run_files import RunFolder, differences
    from hyperbagel.evaluation.tables import Table

    reports, folders = {run: read_report(run) for run in runs}, {run: RunFolder.of(run) for run in runs}
    shown = [brief(reports)] if narrow else tables(reports)
    if not narrow and (differing := differences(folders)):
        rows = dict(list(differing.rows.items())[:_MOST])
        more = len(differing.rows) - len(rows)
        shown.append(Table(f"{differing.title} ({more} more on the page of --html)" if more else differing.title, rows))
    print(markdown(shown))
    if out is not None:
        write_report(combined(reports), Path(out))
    if file is not None:
        write_page(reports, folders, file)
        print(f"\n{file}")
