"""Tables are read as they are meant, or refused row by row: none swallows others, and none is lost without a count."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hyperbagel.datamodules.convert import ConversionSummary, FormatError, convert_folder
from tests.datamodules.convert.datasets import SERIAL, picture, write
from tests.datamodules.convert.shards import outline, read_back

PICTURE = picture(0, "PNG", (4, 4))
NAMES = [f"{number}.png" for number in range(6)]
PLAIN = {name: f"number {name[0]}" for name in NAMES}
ALL = replace(SERIAL, max_skipped=1.0)


def table(delimiter: str, captions: Mapping[str, str] | None = None, header: bool = True) -> str:
    """Rows of all pictures, written without any quoting."""
    rows = [f"{name}{delimiter}{text}\n" for name, text in (PLAIN | dict(captions or {})).items()]
    return "".join([f"file_name{delimiter}text\n"] * header + rows)


def convert(folder: Path, file: str, content: str | bytes) -> tuple[dict[str, str], ConversionSummary]:
    """Captions by picture of what was converted, and the counts, which have to add up."""
    for name in NAMES:
        write(folder / "src" / name, PICTURE)
    write(folder / "src" / file, content)
    summary = convert_folder(str(folder / "src"), str(folder / "out"), options=ALL)
    documents = [document for document, _ in read_back(folder / "out")]
    assert len(documents) == summary.written == summary.rows - sum(summary.skipped.values())
    assert str(summary).startswith(f"{summary.written} of {summary.rows} rows written")
    return {document.meta["file_name"].strip(): outline(document)[0][0] for document in documents}, summary


def without(*names: str, **changed: str) -> dict[str, str]:
    return {name: changed.get(f"n{name[0]}", text) for name, text in PLAIN.items() if name not in names}


MARKS: dict[str, tuple[str, str, dict[str, str], int]] = {
    # file, content, captions, rows that are refused
    "open tsv": ("captions.tsv", table("\t", {"2.png": '"a sign, from below'}), without(n2='"a sign, from below'), 0),
    "open csv": ("captions.csv", table(",", {"2.png": '"a sign from below'}), without("2.png"), 1),
    "open in the last row": ("captions.csv", table(",", {"5.png": '"a sign'}), without("5.png"), 1),
    "open in the first row": ("captions.csv", table(",", {"0.png": '"a sign'}), without("0.png"), 1),
    "open in every row": ("captions.tsv", table("\t", {name: '"x' for name in NAMES}), {n: '"x' for n in NAMES}, 0),
    "tsv from row to row": (
        "captions.tsv", table("\t", {"1.png": '"stop', "4.png": 'a sign: go"'}),
        without(n1='"stop', n4='a sign: go"'), 0,
    ),
    "csv from row to row": (
        "captions.csv", table(",", {"1.png": '"stop', "4.png": 'a sign: go"'}), without("1.png", n4='a sign: go"'), 1,
    ),
    "csv from a row to the next": (
        "captions.csv", table(",", {"3.png": '"stop', "4.png": 'go"'}), without("3.png", n4='go"'), 1,
    ),
    "csv with doubled marks in between": (
        "captions.csv", table(",", {"1.png": '"stop', "3.png": 'say ""hi""'}), without("1.png", n3='say ""hi""'), 1,
    ),
    "captions first": (
        "captions.csv", 'text,file_name\n"stop,0.png\nnumber 1,1.png\ngo",2.png\n',
        {"1.png": "number 1", "2.png": 'go"'}, 1,
    ),
    "three columns": (
        "captions.csv", 'file_name,text,by\n0.png,"a,me\n1.png,b,you\n2.png,c",me\n3.png,"d, e",me\n',
        {"1.png": "b", "2.png": 'c"', "3.png": "d, e"}, 1,
    ),
    "upper-case endings of names": (
        "captions.tsv", 'file_name\ttext\n0.PNG\t"stop\n1.PNG\tgo"\n', {"0.PNG": '"stop', "1.PNG": 'go"'}, 0,
    ),
    "a mark behind the closing one": ("captions.csv", table(",", {"2.png": '"a" b'}), without("2.png"), 1),
    "inches": ("captions.csv", table(",", {"2.png": 'a 5" or 7" pipe'}), without(n2='a 5" or 7" pipe'), 0),
    "meant: several lines": (
        "captions.csv", table(",", {"2.png": '"one, two,\nthree, and ""four"""', "3.png": '"a\r\nb"'}),
        without(n2='one, two,\nthree, and "four"', n3="a\r\nb"), 0,
    ),
    "meant: several lines between tabs": (
        "captions.tsv", table("\t", {"2.png": '"one\n\ntwo"'}), without(n2="one\n\ntwo"), 0,
    ),
    "a txt file knows no marks": (
        "captions.txt", table("\t", {"2.png": '"one', "3.png": 'two"'}, header=False), without(n2='"one', n3='two"'), 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MARKS)
def test_quotation_marks_swallow_no_rows(tmp_path: Path, name: str):
    file, content, expected, refused = MARKS[name]
    captions, summary = convert(tmp_path, file, content)
    assert captions == expected
    assert summary.skipped == ({"bad_schema": refused} if refused else {})
    if refused:
        assert "a quotation mark does not close where a row ends" in summary.examples["bad_schema"][0]


def test_names_without_an_ending_are_known_by_their_numbers(tmp_path: Path):
    for number in range(5):
        write(tmp_path / f"src/{number}", PICTURE)
    _, summary = convert(tmp_path, "captions.csv", 'file_name,text\n0,"a\n1,b\n2,c"\n3,d\n')
    assert summary.skipped == {"bad_schema": 1} and summary.written == 3


def test_a_caption_with_other_rows_in_it_is_refused_wherever_it_comes_from(tmp_path: Path):
    swallowed = r'{"file_name": "0.png", "text": "stop\n1.png\tplain\n2.png\tgo"}'
    listed = r'{"file_name": "3.png", "text": "a.png, b.png and others\nof the kind"}'
    captions, summary = convert(tmp_path, "metadata.jsonl", f"{swallowed}\n{listed}\n")
    assert captions == {"3.png": "a.png, b.png and others\nof the kind"}
    assert "holds another row, that of '1.png'" in summary.examples["bad_schema"][0]


TWO = {"0.png": "a", "1.png": "b"}
LAST = '{"file_name": "1.png", "text": "b"}\n'
SEPARATORS = "a\u2028b\x0bc\x0cd\u0085e\x1cf"

SHAPES: dict[str, tuple[str, str | bytes, dict[str, str], dict[str, int]]] = {
    "ragged": (
        "captions.csv", table(",", {"1.png": "too, many", "2.png": "a,b,c"}).replace("3.png,number 3", "3.png"),
        without("1.png", "2.png", "3.png"), {"bad_schema": 3},
    ),
    "commas at the ends": ("captions.csv", table(",").replace("\n", ",,\n"), PLAIN, {}),
    "empty rows": ("captions.csv", table(",").replace("3.png", "\n  \n,\n\t\n3.png") + "\n,\n\n", PLAIN, {}),
    "a column without a name": ("captions.csv", ",file_name,text\n0,0.png,a\n1,1.png,b\n", TWO, {}),
    "spaces around": ("captions.csv", table(" , "), PLAIN, {}),
    "no last line end": ("captions.tsv", table("\t").removesuffix("\n"), PLAIN, {}),
    "CRLF": ("captions.csv", table(",").replace("\n", "\r\n"), PLAIN, {}),
    "CR": ("captions.csv", table(",").replace("\n", "\r"), PLAIN, {}),
    "CR in one place": ("captions.tsv", table("\t").replace("3\n", "3\r"), PLAIN, {}),
    "CR in JSON Lines": (
        "metadata.jsonl", '{"file_name": "0.png", "text": "a"}\r{"file_name": "1.png", "text": "b"}\r',
        TWO, {},
    ),
    "a mark of UTF-8": ("captions.csv", "\ufeff" + table(","), PLAIN, {}),
    "two files in one": ("captions.csv", 2 * ("\ufeff" + table(",")), PLAIN, {"bad_schema": 1}),
    "separators of lines in JSON": (
        "metadata.jsonl", '{"file_name": "0.png", "text": "a\u2028b\u0085c\u2029d"}\n' + LAST,
        {"0.png": "a\u2028b\u0085c\u2029d", "1.png": "b"}, {},
    ),
    "separators of lines in a table": (
        "captions.csv", table(",", {"1.png": SEPARATORS}), without(n1=SEPARATORS), {},
    ),
    "separators of lines in captions": (
        "captions.txt", "".join(f"{text}\n" for text in without(n1=SEPARATORS).values()), without(n1=SEPARATORS), {},
    ),
    "captions with empty lines behind": ("captions.txt", "\n".join(PLAIN.values()) + "\n\n\n", PLAIN, {}),
    "captions with the last one empty": (
        "captions.txt", "\n".join([*PLAIN.values()][:5]) + "\n\n", without("5.png"), {"empty_text": 1},
    ),
    "names of columns in a txt file": ("captions.txt", table("\t"), PLAIN, {}),
    "a key that is there twice": (
        "metadata.jsonl", '{"file_name": "0.png", "text": "a", "text": "b"}\n' + LAST,
        {"1.png": "b"}, {"bad_json": 1},
    ),
    "numbers as names": (
        "metadata.jsonl", '{"file_name": 0, "text": "a"}\n{"file_name": "1", "text": "a"}\n' + LAST,
        {"1.png": "b"}, {"bad_schema": 1, "missing_image": 1},
    ),
    "NUL": ("captions.csv", table(",", {"2.png": "a\0b"}), without("2.png"), {"bad_schema": 1}),
    "NUL in JSON": (
        "metadata.jsonl", '{"file_name": "0.png", "text": "a\\u0000"}\n' + LAST,
        {"1.png": "b"}, {"bad_schema": 1},
    ),
    "Latin-1": ("captions.csv", table(",", {"2.png": "caf\xe9"}).encode("latin-1"), without("2.png"), {"not_utf8": 1}),
    "names": (
        "captions.csv", table(",").replace("0.png", "./0.png").replace("1.png", ".//./1.png")
        .replace("2.png", ".\\2.png").replace("3.png", "a/../3.png").replace("4.png", "C:\\pictures\\4.png")
        .replace("5.png", "https://a.org/5.png"),
        {"./0.png": "number 0", ".//./1.png": "number 1", ".\\2.png": "number 2"}, {"unsafe_name": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_rows_of_any_shape(tmp_path: Path, name: str):
    file, content, expected, skipped = SHAPES[name]
    captions, summary = convert(tmp_path, file, content)
    assert captions == expected and summary.skipped == skipped


REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "UTF-16": ("captions.csv", table(",").encode("utf-16"), "is in UTF-16, not in UTF-8; save it as UTF-8"),
    "UTF-16 without its mark": ("captions.csv", table(",").encode("utf-16-be"), "is in UTF-16"),
    "UTF-32": ("captions.txt", table("\t").encode("utf-32"), "is in UTF-16"),
    "UTF-16 JSON": ("metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n'.encode("utf-16"), "is in UTF-16"),
    "a column twice": ("captions.csv", "file_name,text,text\n0.png,a,b\n", "the column 'text' is there twice"),
    "no names of columns": ("captions.csv", table(",", header=False), "line 1: a row, not names of columns"),
    "semicolons": ("captions.csv", table(";"), "separated by ';'; separate them by commas"),
    "tabs": ("captions.csv", table("\t"), r"separated by '\\t'; separate them by commas"),
    "commas": ("captions.tsv", table(","), "separated by ','; separate them by tabs"),
    "an open mark in the first line": ("captions.csv", '"file_name,text\n0.png,a\n', "no names of columns: a q"),
    "nothing": ("captions.csv", "", "is empty"),
    "only line ends": ("captions.csv", "\n\r\n\n", "has no rows"),
    "only names of columns": ("captions.tsv", "file_name\ttext\n\n", "has no rows"),
    "two lists": ("metadata.json", '[{"file_name": "0.png", "text": "a"}] [{"a": 1}]', "something follows the list"),
    "a list and lines": ("metadata.json", '[{"file_name": "0.png", "text": "a"}]\n{"a": 1}', "something follows the"),
    "an object of captions": ("metadata.json", '{\n"0.png": "a",\n"1.png": "b"\n}', "JSON needs a list of objects"),
    "too few captions": ("captions.txt", "a\nb\n", "2 lines for 6 pictures"),
    "other columns": ("captions.csv", ",".join(f"c{n}" for n in range(900)) + "\na\n", "set `fields"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_are_refused_say_why(tmp_path: Path, name: str):
    file, content, message = REFUSED[name]
    with pytest.raises((FormatError, FileNotFoundError), match=message) as error:
        convert(tmp_path, file, content)
    assert len(str(error.value)) < 300 + len(str(tmp_path)) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_first_row_that_cannot_be_read_is_one_of_many(tmp_path: Path):
    rows = '{"file_name": "0.png", \n{"file_name": "1.png", "text": "b"}\n'
    captions, summary = convert(tmp_path, "metadata.jsonl", rows)
    assert captions == {"1.png": "b"} and summary.skipped == {"bad_json": 1}


def test_an_open_mark_does_not_take_in_the_rest_of_a_large_table(tmp_path: Path):
    rows = [f"{name},{'words ' * 300}\n" for name in NAMES * 20]
    _, summary = convert(tmp_path, "captions.csv", "".join(["file_name,text\n", '0.png,"open\n', *rows]))
    assert summary.skipped == {"bad_schema": 1} and summary.written == 120
    assert "line 2: a quotation mark" in summary.examples["bad_schema"][0]


def test_what_the_table_leaves_out_is_told(tmp_path: Path):
    write(tmp_path / "src/more/7.png", PICTURE)
    write(tmp_path / "src/captions.txt", "another table")
    rows = table(",", {"2.png": "number 2"}).replace("4.png,number 4\n", "0.png,number 0\n1.png,another wording\n")
    captions, summary = convert(tmp_path, "captions.csv", rows)
    assert set(captions) == {"0.png", "1.png", "2.png", "3.png", "5.png"} and summary.written == 7
    assert summary.notes == [
        "captions.csv was read, but not captions.txt",
        "2 pictures of the folder have no row in captions.csv, such as 4.png, more/7.png",
        f"1 rows are the same as earlier ones, such as {tmp_path}/src/captions.csv, line 6",
    ]
    assert all(note in str(summary).splitlines() for note in summary.notes)
