"""Whatever a folder holds: every row is written or skipped, or the data set is refused in one line; nothing hangs."""

import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hyperbagel.datamodules.convert import ConversionSummary, convert_folder
from hyperbagel.datamodules.convert.errors import BadRowError
from hyperbagel.datamodules.convert.rows import Row
from hyperbagel.datamodules.convert.slices import slice_json
from hyperbagel.datamodules.convert.tables import TableDialect, slice_table
from tests.datamodules.convert.datasets import SERIAL, picture, write
from tests.datamodules.convert.shards import outline, read_back

PICTURE = picture(0, "PNG", (4, 4))
QUICK = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

pieces = st.sampled_from(
    ["0.png", "1.png", "./1.png", "A.PNG", "gone.png", "../0.png", "a word", "ß图", '"', '""', ",", "\t", "\n", "\r\n",
     "\r", "\0", "\\", " ", "\u2028", "\x0c", "\ufeff", "\udce9", '{"file_name": "0.png", "text": "a"}', "{", "]", ":"]
)  # fmt: skip
texts = st.lists(pieces, max_size=24).map("".join)
rows = st.lists(st.tuples(pieces, pieces), max_size=8).map(lambda found: "".join(f"{a}\t{b}\n" for a, b in found))
names = st.sampled_from(
    ["0.png", "0.txt", "A.PNG", "a.TXT", "B.Jpg", "._0.png", ".DS_Store", "caf\udce9.png", "caf\udce9.txt",
     "more/0.png", "more/0.txt", "__MACOSX/0.png", " x .png", " x .txt", "y\\z.png", "é.png", "e\u0301.txt", "b/c.png"]
)  # fmt: skip


@given(st.one_of(texts, rows), st.sampled_from([",", "\t"]), st.booleans(), st.integers(1, 5))
@settings(QUICK, max_examples=100)
@example('0.png\t"a\n1.png\tb\n2.png\tc"\n', "\t", True, 1)
def test_a_table_is_the_same_in_slices_of_any_size(text: str, delimiter: str, quoted: bool, size: int):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "table", ("0.png,x\n" + text).encode("utf-8", "surrogateescape"))
        if path.read_bytes()[:4096].count(0) * 4 > path.stat().st_size:
            return
        dialect = TableDialect(delimiter, quoted, ("file_name", "text"))
        whole, sliced = (slice_table(path, number, dialect) for number in (10**6, size))
        found = [[shape(row) for part in parts for row in part.rows()] for parts in (whole, sliced)]
        assert found[0] == found[1] and len(found[1]) == sum(part.count or 0 for part in sliced)
        if '"' not in text:
            lines = [line.removeprefix("\ufeff") for line in re.split("\r\n|\r|\n", text)]
            assert len(found[0]) == 1 + sum(bool(line.replace(delimiter, "").strip()) for line in lines)
        for row in found[0]:
            if isinstance(row[1], dict):
                assert not re.search(r"[\r\n][^\s,]*\.png\"?[,\t]", row[1]["text"])


@given(
    st.lists(st.sampled_from(['{"a": "\u2028"}', '{"a": 1', "[1]", " ", "", "\u0085", "{}"]), min_size=1, max_size=12)
)
@settings(QUICK, max_examples=50)
def test_json_lines_are_all_counted(lines: list[str]):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.jsonl", "{}\n" + "\n".join(lines))
        slices = slice_json(path, 3)
        assert sum(1 for part in slices for _ in part.rows()) == 1 + sum(bool(line.strip(" ")) for line in lines)


def shape(row: Row) -> tuple[str, object]:
    return row.place, str(row.data) if isinstance(row.data, BadRowError) else dict(row.data)


@given(
    st.lists(names, max_size=8),
    st.one_of(st.none(), texts, rows.map(lambda text: "file_name\ttext\n" + text)),
    st.sampled_from(["captions.csv", "captions.tsv", "CAPTIONS.TXT", "metadata.jsonl", "metadata.json"]),
)
@settings(QUICK, max_examples=50)
def test_a_folder_is_converted_or_refused(files: list[str], content: str | None, table: str):
    with tempfile.TemporaryDirectory() as folder:
        src, out = Path(folder) / "src", Path(folder) / "out"
        for name in ("a.png", "a.txt", *files):
            write(src / name, PICTURE if name.lower().endswith(("png", "jpg")) else "a caption")
        os.symlink(src, src / "loop")
        if content is not None:
            write(src / table, content.encode("utf-8", "surrogateescape"))
        try:
            summary = convert_folder(str(src), str(out), options=replace(SERIAL, max_skipped=1))
        except (ValueError, OSError) as error:
            assert "\n" not in str(error) and len(str(error)) < 700 and str(error).isprintable()
            return
        check(summary, out)


def check(summary: ConversionSummary, out: Path) -> None:
    documents = read_back(out)
    assert summary.rows == summary.written + sum(summary.skipped.values()) and len(documents) == summary.written
    assert all(outline(document)[0][0].strip() for document, _ in documents)
    assert all("\n" not in line and len(line) < 700 for line in str(summary).split("\n"))
    str(summary).encode()
