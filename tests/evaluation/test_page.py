"""Tables, differences in settings, curves, and the page that shows them all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from hyperbagel.cli import main
from hyperbagel.evaluation.page import page
from hyperbagel.evaluation.plots import MOST_POINTS, svg
from hyperbagel.evaluation.reports import read_report, tables
from hyperbagel.evaluation.run_files import RunFolder, costs, differences
from hyperbagel.evaluation.tables import Table

COLORS = {"a": "#111", "b & c": "#222"}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Two runs that differ in one setting and in their results."""
    folders = {name: tmp_path / name for name in ("first", "second")}
    for number, folder in enumerate(folders.values()):
        folder.mkdir()
        report = {"rows": {"model": {"geneval/overall": 0.5 + number / 10}}, "details": {}, "captions": ["a <star>"]}
        (folder / "report.json").write_text(json.dumps({"results": {"geneval": report}}))
        stage = {"class_path": "x.ADP", "init_args": {"method": {"pair_weight": 1 - number}, "model": "scenes"}}
        callbacks = [{"class_path": "y.EMA", "init_args": {"decay": 0.9}}]
        trainer = {"callbacks": callbacks, "default_root_dir": str(folder), "logger": {"name": folder.name}}
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": stage, "trainer": trainer}))
        provenance = {"stage": "x.ADP", "seconds": 90.0, "student_step": 30, "parameters": {"trained": 1_500_000}}
        (folder / "provenance.json").write_text(json.dumps(provenance))
        Image.new("RGB", (8, 8), "red").save(folder / "geneval.png")
        with SummaryWriter(folder) as writer:
            for step in range(1, 4):
                writer.add_scalar("loss/pairs", 1 / step + number, step)
            writer.add_scalar("hparams/x", 1, 0)
    return folders


def test_tables_have_all_columns_and_are_escaped() -> None:
    table = Table("loss", {"a": {"loss/x": "1"}, "b | <c>": {"loss/y": "20"}})
    assert table.columns == ["loss/x", "loss/y"]
    assert table.markdown().splitlines()[2:] == [
        "|         | x |  y |",
        "| ------- | : | -: |",
        "| a       | 1 |  - |",
        "| b | <c> | - | 20 |",
    ]
    assert "<th>b | &lt;c&gt;</th><td>-</td><td>20</td>" in table.html()


def test_counts_have_no_decimals_and_scores_have_them() -> None:
    rows = {"teacher": {"nfe": 100.0, "overall": 1.0, "o": 9.0}, "nfe1": {"nfe": 1.0, "overall": 0.0, "o": 8.5}}
    (table,) = tables({"run": {"results": {"x": {"rows": rows}}}})
    assert table.rows["teacher"] == {"nfe": "100", "overall": "1.000", "o": "9.000"}
    assert table.rows["nfe1"] == {"nfe": "1", "overall": "0.000", "o": "8.500"}


def test_runs_differ_in_settings_but_not_in_their_places(runs: dict[str, Path]) -> None:
    folders = {name: RunFolder(folder) for name, folder in runs.items()}
    table = differences(folders)
    assert table is not None
    assert table.rows == {"model.init_args.method.pair_weight": {"first": "1", "second": "0"}}
    assert differences({"first": folders["first"]}) is None
    assert costs(folders).rows["first"] == {"stage": "ADP", "updates": "30", "trained": "1.50 M", "minutes": "1.5"}  # type: ignore[union-attr]
    assert folders["first"].curves() == {"loss/pairs": [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]}
    assert RunFolder.of(runs["first"] / "report.json") == folders["first"]


def test_curves_lie_within_their_frame() -> None:
    chart = ElementTree.fromstring(svg("a <b>", {"a": [(0, 1), (10, 3)], "b & c": [(5, float("nan")), (4, 2)]}, COLORS))
    lines = [line.attrib["points"] for line in chart.iter("polyline")]
    assert lines == ["52.0,178.0 352.0,24.0", "172.0,101.0"]
    assert [line.attrib["stroke"] for line in chart.iter("polyline")] == ["#111", "#222"]
    long = svg("x", {"a": [(x, 1.0) for x in range(5000)]}, COLORS)
    assert len(re.findall(r"\d+\.\d,", long)) == MOST_POINTS
    with pytest.raises(ValueError, match="no points"):
        svg("x", {"a": [(0, float("inf"))]}, COLORS)


def test_a_page_stands_alone(runs: dict[str, Path]) -> None:
    folders = {name: RunFolder(folder) for name, folder in runs.items()}
    text = page({name: read_report(folder) for name, folder in runs.items()}, folders)
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import|<script', text)
    assert text.count('src="data:image/png;base64,') == 2 and "a &lt;star&gt;" in text and "pair_weight" in text
    assert text.count("<polyline") == 2 and "hparams/x" not in text


def test_single_pictures_stand_under_what_they_should_show(runs: dict[str, Path]) -> None:
    """Of both runs side by side, an edit's source once; large ones are made smaller, sheets are for runs without."""
    for folder in runs.values():
        report = json.loads((folder / "report.json").read_text())
        names = {"source": ["pictures/s.png"], "model": ["pictures/m.png"]}
        report["results"]["gedit"] = {"rows": {"model": {}}, "captions": ["Make it <blue>."], "pictures": names}
        (folder / "report.json").write_text(json.dumps(report))
        for size, name in (((8, 8), "s"), ((1024, 512), "m")):
            (folder / "pictures").mkdir(exist_ok=True)
            Image.new("RGB", size, "red").save(folder / "pictures" / f"{name}.png")
        Image.new("RGB", (8, 8)).save(folder / "gedit.png")
    (runs["second"] / "pictures" / "s.png").unlink()  # the first run has it too
    folders = {name: RunFolder.of(folder) for name, folder in runs.items()}
    text = page({name: read_report(folder) for name, folder in runs.items()}, folders)
    (card,) = re.findall(r"<section>(.*?)</section>", text)
    assert card.startswith("<p>Make it &lt;blue&gt;.</p>")
    assert re.findall(r"<figcaption>(.*?)</figcaption>", card) == ["source", "first", "second"]
    assert re.findall(r"data:image/(\w+)", card) == ["png", "jpeg", "jpeg"]
    assert "geneval: the same prompts" in text and "gedit: the same prompts" not in text
    (runs["second"] / "pictures" / "m.png").unlink()
    assert "<em>m.png is missing</em>" in page({n: read_report(f) for n, f in runs.items()}, folders)


def test_the_command_writes_it_and_lists_what_differs(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["report", "first", "second", "--html"])
    shown = capsys.readouterr().out
    assert "model.init_args.method.pair_weight |     1 |      0 |" in shown and shown.endswith("\nreport.html\n")
    main(["report", "first", "second", "--html", "new/page.html"])
    assert Path("new/page.html").read_text() == Path("report.html").read_text()
    with pytest.raises(SystemExit, match=r"report: .*first: is a folder; name a file in it"):
        main(["report", "first", "--html", "first"])
