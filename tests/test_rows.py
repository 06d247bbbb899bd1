"""From a file to rows: JSON lines, CSV and TSV, and what is said about bad ones."""

import json
from pathlib import Path

import pytest

from dora_jax.tasks.rows import UNLABELLED, Columns, list_complaints, read_rows
from dora_jax.tasks.task import get_task

WLP, FEVER = get_task("wlp"), get_task("fever")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# JSON lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"source": "a", "target": ', r"broken JSON \(.* at column \d+"),
        (b'{"source": "a}', r"broken JSON \(Unterminated string starting at column 12\)"),
        (b'["a", "b"]', "expected an object with 'source' and 'target', found list"),
        (b"7", "found int"),
        (b'{"source": "a", "label": "b"}', "'target' is missing; found source, label"),
        (b"{}", "'source' is missing; found none"),
        (b'{"source": "a", "target": null}', "'target' must be text, found NoneType None"),
        (b'{"source": ["a"], "target": ""}', "'source' must be text, found list"),
        (b'{"source": " ", "target": ""}', "'source' is empty"),
        (b'{"source": "\xff", "target": ""}', "not UTF-8"),
        (b'{"source": "\\ud800", "target": ""}', "half a surrogate pair at character 0"),
        (b'{"source": "a", "target": "a", "n": ' + b"1" * 5000 + b"}", "broken JSON"),
        (b"[" * 100_000, "broken JSON"),
        (b'{"source": "Mix", "target": "Mix [Actoin]"}', "Actoin"),
    ],
)
def test_bad_row_is_named_or_skipped_and_counted(tmp_path, line, message):
    path = tmp_path / "rows.json"
    good = b'{"source": "Mix", "target": "Mix [Action]"}\n'
    path.write_bytes(good + b"\n" + line + b"\n" + good)
    with pytest.raises(ValueError, match=rf"rows\.json:3: .*{message}") as caught:
        read_rows(path, "error", check_target=WLP.check_target)
    assert 'ON_BAD_ROW = "skip"' in str(caught.value)
    read = read_rows(path, "skip", check_target=WLP.check_target)
    assert [row.location for row in read.rows] == [f"{path}:1", f"{path}:4"]
    assert [bad.location for bad in read.skipped] == [f"{path}:3"]


def test_empty_target_and_odd_separators_are_legal(tmp_path):
    path = tmp_path / "rows.json"
    row = {"source": "a\u2028b\x85c", "target": ""}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")  # no newline at the end
    [read] = read_rows(path, "error", check_target=WLP.check_target).rows
    assert (read.source, read.target) == ("a\u2028b\x85c", "")


def test_unlabelled_rows_need_no_target(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"source": "a"}\n{"source": "b", "target": 7}\n')
    assert [r.target for r in read_rows(path, "error", UNLABELLED).rows] == ["", ""]


def test_all_bad_rows_are_listed_with_their_counts(tmp_path):
    targets = ["SUPPORTS", "supports", "NEI", "supports", "REFUTES", "NEI", "NEI"]
    path = tmp_path / "rows.json"
    write_lines(path, [{"source": "a", "target": target} for target in targets])
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ValueError) as caught:
        read_rows(path, "error", check_target=FEVER.check_target)
    message = str(caught.value)
    assert message.startswith(f"{path} has 6 bad rows:\n")
    lines = message.splitlines()
    assert lines[1].startswith(f"  {path}:3: the label 'NEI' is not known")
    assert lines[1].endswith("(3 rows)")
    assert lines[2].startswith(f"  {path}:2: the label 'supports'")
    assert "did you mean 'SUPPORTS'" in lines[2]
    assert lines[2].endswith("(2 rows)")
    assert lines[3].startswith(f"  {path}:8: broken JSON")
    assert "rows)" not in lines[3]
    skipped = read_rows(path, "skip", check_target=FEVER.check_target).skipped
    assert [f"  {line}" for line in list_complaints(skipped)] == lines[1:4]


def test_a_file_of_nothing_but_mistakes_does_not_fill_the_screen(tmp_path):
    path = tmp_path / "rows.json"
    write_lines(path, [{"source": "a", "target": f"class {i}"} for i in range(50)])
    with pytest.raises(ValueError, match="50 bad rows") as caught:
        read_rows(path, "error", check_target=FEVER.check_target)
    assert len(str(caught.value).splitlines()) == 23
    assert "… and 30 other complaints" in str(caught.value)


def test_unreadable_files_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read .*\. Look elsewhere"):
        read_rows(tmp_path / "nowhere.json", "skip", if_unreadable="Look elsewhere.")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_rows(tmp_path, "skip")


# Tables


def write_table(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


COLUMNS = Columns("text", "label")


def read_table(path: Path, on_bad_row: str = "error"):
    read = read_rows(path, on_bad_row, COLUMNS)
    return [(row.source, row.target, int(row.location.rpartition(":")[2])) for row in read.rows]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("text,label\na b,X\nc,Y\n", "rows.csv"),
        ("\ufefftext,label\r\na b,X\r\nc,Y", "rows.csv"),  # Excel's CSV UTF-8
        ("text;label\na b;X\nc;Y\n", "rows.csv"),  # Excel's where the comma is in numbers
        ("text\tlabel\na b\tX\nc\tY\n", "rows.TSV"),
        ("text\tlabel\na b\tX\nc\tY\n", "rows.csv"),
        ('"text" , label \n a b ,X \n"c",Y\n'.replace('"text" ,', '"text",'), "rows.csv"),
        ('{"text": "a b", "label": "X"}\n{"label": "Y", "text": "c"}', "rows.jsonl"),
    ],
)
def test_one_table_in_many_forms(tmp_path, content, name):
    rows = read_table(write_table(tmp_path, content, name))
    assert [row[:2] for row in rows] == [("a b", "X"), ("c", "Y")]


def test_columns_beside_the_two_and_rows_without_text_do_not_matter(tmp_path):
    path = write_table(tmp_path, "id,label,,text,\n1,X,,a,\n\n,,,,\n3,Y,,b,\n")
    assert read_table(path) == [("a", "X", 2), ("b", "Y", 5)]


def test_quoted_cells_hold_anything_and_lines_are_counted_through_them(tmp_path):
    path = write_table(tmp_path, 'text,label\n"a, ""b""\nsecond line",X\nc,Y\n')
    assert read_table(path) == [('a, "b"\nsecond line', "X", 2), ("c", "Y", 4)]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (b"a", r"rows\.csv:3: expected 2 cells, as the first row has, found 1"),
        (b"a,X,Y", r"rows\.csv:3: expected 2 cells.*found 3"),
        (b'"a"b,X', r"rows\.csv:3: broken quoting"),
        (b",X", r"rows\.csv:3: 'text' is empty"),
        (b"\xe4,X", r"rows\.csv:3: not UTF-8; save the table as UTF-8"),
    ],
)
def test_bad_rows_of_a_table_are_named_or_skipped(tmp_path, row, complaint):
    path = write_table(tmp_path, b"text,label\nb,Y\n" + row + b"\nc,Z\n")
    with pytest.raises(ValueError, match=complaint):
        read_table(path)
    assert read_table(path, "skip") == [("b", "Y", 2), ("c", "Z", 4)]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", r"rows\.csv is empty; its first row must name the columns"),
        ("txt,label\na,X\n", r"rows\.csv:1: there is no column 'text'.*Did you mean 'txt'"),
        ("\ntext,x\na,X\n", r"rows\.csv:2: there is no column 'label'; .*'text', 'x'"),
        ("text,label,label\na,X,Y\n", r"rows\.csv:1: 2 columns have the name 'label'"),
        ('text,label\na,X\n"b,Y\nc,Z\n', r"rows\.csv:3: a quotation mark .* never closed"),
        ("text,label\n" + "a" * 200_000 + ",X\n", r"rows\.csv:2: .*more than 131,072"),
        (b"\xff\xfet\x00e\x00", "UTF-16; save it again as UTF-8"),
        ("text,label\na,X\n".encode("utf-16-le"), "UTF-16; save it again as UTF-8"),
        (b"PK\x03\x04\x14\x00\x06\x00", "a workbook or in UTF-16; save it again"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_even_where_rows_are_skipped(
    tmp_path, content, complaint
):
    path = write_table(tmp_path, content)
    for on_bad_row in ("error", "skip"):
        with pytest.raises(ValueError, match=complaint):
            read_table(path, on_bad_row)
