"""People as annotators: which texts, sheets there and back, agreement, majority, the bill."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from dora_jax.annotators import choosing
from dora_jax.annotators.agreement import agreement, cohen_kappa, fleiss_kappa, merge, span_f1
from dora_jax.annotators.llm import row_ids
from dora_jax.annotators.sheet_import import import_sheets
from dora_jax.annotators.sheets import Item, label_studio_config, write_sheet
from dora_jax.cost.ledger import Ledger
from dora_jax.launch import annotate
from dora_jax.tasks.task import TaskSpec, get_task

WLP, FEVER, NQ = get_task("wlp"), get_task("fever"), get_task("nq")
SOURCES = [
    "Add 5 ml of buffer at -80 °C .",
    '=HYPERLINK("http://x") is a cell',
    'Mix "gently", twice ; then rest .',
    "Über 20 °C",
]
IDS = row_ids(SOURCES)
POOL = dict(zip(IDS, SOURCES, strict=True))
ITEMS = [Item(row, source) for row, source in POOL.items()]


# --- Which texts


def test_drawn_texts_do_not_depend_on_the_order_of_the_file() -> None:
    texts = [f"text {i}" for i in range(50)]
    chosen = [texts[i] for i in choosing.at_random(texts, 10, seed=1)]
    assert [texts[::-1][i] for i in choosing.at_random(texts[::-1], 10, seed=1)] == chosen
    assert [texts[i] for i in choosing.at_random(texts, 20, seed=1)][:10] == chosen
    assert [texts[i] for i in choosing.at_random(texts, 10, seed=2)] != chosen


def test_the_most_uncertain_come_first() -> None:
    texts = ["a", "b", "c"]
    assert choosing.most_uncertain(texts, 2, {"a": 0.1, "b": 0.9, "c": 0.5}) == [1, 2]
    with pytest.raises(ValueError, match="1 of 3 texts is not known"):
        choosing.most_uncertain(texts, 2, {"a": 0.1, "b": 0.9})


def test_diverse_texts_are_each_the_farthest_from_those_before() -> None:
    groups = [
        [f"wash the cells {i}" for i in range(5)],
        [f"Sean Penn acts {i}" for i in range(5)],
        [f"zzz qqq {i}" for i in range(5)],
    ]
    texts = [text for group in groups for text in group]
    for labelled in ([], ["wash the cells 9"]):
        chosen = choosing.most_diverse(texts, 15, labelled)
        assert sorted(chosen) == list(range(15))
        assert choosing.most_diverse(texts, 3, labelled) == chosen[:3]
        first = [place // 5 for place in chosen[: 2 + (not labelled)]]
        assert len(set(first)) == len(first)
        if labelled:
            assert 0 not in first  # that kind is known


# --- Sheets


def give(path: Path, labels: Sequence[str], person: str = "") -> None:
    """What a person does with a spreadsheet."""
    written, saved = ("\t", ";") if path.suffix == ".tsv" else (",", ",")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=written))
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(
            file, list(rows[0]), delimiter=";" if path.suffix == ".tsv" else ","
        )
        writer.writeheader()
        for row, label in zip(rows, labels, strict=True):
            writer.writerow({**row, "label": label, "annotator": person})


def test_a_spreadsheet_comes_back_as_it_went(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    write_sheet(sheet, WLP, ITEMS)
    assert not any(
        cell.startswith(("=", "+", "-", "@"))
        for row in csv.reader(sheet.read_text(encoding="utf-8-sig").splitlines())
        for cell in row
    )
    labels = ["Add [Action] -80 °C [Temperature]", "", "NONE", "20 °C [Temperature]"]
    give(sheet, labels, "anna")
    found = import_sheets([sheet], WLP, POOL)
    assert found.complaints == []
    assert found.unlabelled == 1
    assert found.labels == {
        IDS[0]: {"anna": labels[0]},
        IDS[2]: {"anna": ""},
        IDS[3]: {"anna": labels[3]},
    }


def test_a_label_may_begin_with_the_sign_of_an_amount(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.tsv"
    write_sheet(sheet, WLP, ITEMS[:1])
    give(sheet, ["-80 °C [Temperature]"])
    assert import_sheets([sheet], WLP, POOL).labels == {IDS[0]: {"sheet": "-80 °C [Temperature]"}}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda row: row.update(id="unknown"), "is that of no text of the pool"),
        (lambda row: row.update(source="Add 5 ml"), "the text of .* was changed"),
        (lambda row: row.update(label="Add [Acting]"), r"\[Acting\] is not known"),
        (lambda row: row.update(label="ethanol [Reagent]"), "does not stand in the text"),
        (lambda row: row.update(label="=cmd|' /C calc'!A0"), "begins as a formula does"),
        (lambda row: row.update(label="@SUM(1)"), "begins as a formula does"),
        (lambda row: row.update(annotator="+1"), "begins as a formula does"),
    ],
)
def test_bad_rows_are_told_with_their_place(
    tmp_path: Path, change: Callable[[dict[str, str]], None], complaint: str
) -> None:
    sheet = tmp_path / "sheet.csv"
    row = {"id": IDS[0], "source": SOURCES[0], "label": "Add [Action]", "annotator": "anna"}
    change(row)
    with open(sheet, "w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    found = import_sheets([sheet], WLP, POOL)
    assert found.labels == {}
    (told,) = found.complaints
    assert re.fullmatch(f"{re.escape(str(sheet))}:2: .*{complaint}.*", told)


def test_two_labels_of_one_person_for_one_text_are_a_conflict(tmp_path: Path) -> None:
    sheets = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for sheet, label in zip(sheets, ("SUPPORTS", "REFUTES"), strict=True):
        write_sheet(sheet, FEVER, ITEMS[:1])
        give(sheet, [label], "anna")
    found = import_sheets(sheets, FEVER, POOL)
    assert found.labels == {IDS[0]: {"anna": "SUPPORTS"}}
    assert "gave" in found.complaints[0] and "two labels" in found.complaints[0]


def label_studio(result: list[dict[str, Any]], place: int = 0, **more: Any) -> dict[str, Any]:
    annotation = {"completed_by": 7, "result": result, **more}
    return {"data": {"id": IDS[place], "text": SOURCES[place]}, "annotations": [annotation]}


def span(start: int, end: int, kind: str, text: str) -> dict[str, Any]:
    return {"type": "labels", "value": {"start": start, "end": end, "text": text, "labels": [kind]}}


def test_label_studio_there_and_back(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.json"
    write_sheet(sheet, WLP, ITEMS)
    tasks = json.loads(sheet.read_text())
    assert [(task["data"]["id"], task["data"]["text"]) for task in tasks] == list(POOL.items())
    config = ElementTree.parse(tmp_path / "sheet.label_studio.xml")
    assert [label.get("value") for label in config.iter("Label")] == list(WLP.labels)
    back = [
        label_studio([span(19, 25, "Reagent", "at -80")]),
        label_studio([span(12, 18, "Reagent", "buffer"), span(0, 3, "Action", "Add")], 0),
        label_studio([span(0, 900, "Action", "Add")]),
        label_studio([span(0, 3, "Action", "Add"), span(2, 5, "Amount", "d 5")]),
        label_studio([], 1, was_cancelled=True),
        label_studio([], 2),
    ]
    back[0]["annotations"][0]["result"][0]["value"]["text"] = "buffer"
    sheet.write_text(json.dumps(back))
    found = import_sheets([sheet], WLP, POOL)
    assert found.labels == {
        IDS[0]: {"label-studio:7": "Add [Action] buffer [Reagent]"},
        IDS[2]: {"label-studio:7": ""},
    }
    assert found.unlabelled == 1
    complaints = ("is 'at -80', not 'buffer'", "is not in the text", "overlaps")
    assert len(found.complaints) == len(complaints)
    for told, words in zip(found.complaints, complaints, strict=True):
        assert words in told


def test_spans_behind_a_character_that_browsers_count_twice(tmp_path: Path) -> None:
    """Label Studio's offsets are a browser's; Prodigy's are Python's."""
    source = "🧪 Add 𝛼-amylase to 5 ml ."
    pool = dict(zip(row_ids([source]), [source], strict=True))
    (row_id,) = pool

    def offsets(words: str) -> tuple[int, int]:
        before = source[: source.index(words)]
        start, length = (len(part.encode("utf-16-le")) // 2 for part in (before, words))
        return start, start + length

    words = {"Add": "Action", "𝛼-amylase": "Reagent", "5 ml": "Amount"}
    spans = [span(*offsets(word), kind, word) for word, kind in words.items()]
    assert [source[s["value"]["start"] : s["value"]["end"]] for s in spans] != [*words]
    record = {"data": {"id": row_id, "text": source}, "annotations": [{"result": spans}]}
    sheet = tmp_path / "sheet.json"
    sheet.write_text(json.dumps([record]))
    target = "Add [Action] 𝛼-amylase [Reagent] 5 ml [Amount]"
    assert import_sheets([sheet], WLP, pool).labels == {row_id: {"label-studio:": target}}
    starts = {word: source.index(word) for word in words}
    plain = [
        {"start": starts[word], "end": starts[word] + len(word), "label": kind}
        for word, kind in words.items()
    ]
    sheet = tmp_path / "sheet.jsonl"
    row = {"text": source, "meta": {"id": row_id}, "spans": plain, "answer": "accept"}
    sheet.write_text(json.dumps(row))
    assert import_sheets([sheet], WLP, pool).labels == {row_id: {"prodigy": target}}


def test_a_spreadsheet_takes_no_id_for_a_number(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    write_sheet(sheet, FEVER, [Item("1234567890e12345", "A claim.")])
    with open(sheet, newline="", encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    with pytest.raises(ValueError, match="could not convert"):
        float(row["id"])
    give(sheet, ["SUPPORTS"])
    found = import_sheets([sheet], FEVER, {"1234567890e12345": "A claim."})
    assert found.labels == {"1234567890e12345": {"sheet": "SUPPORTS"}}


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    good = {"text": SOURCES[0], "meta": {"id": IDS[0]}, "answer": "accept"}
    spans = ({"start": 0, "end": 999, "label": "Action"}, {"start": 0, "end": 3, "label": "Acting"})
    lines = ["{broken", "", "[]", *(json.dumps({**good, "spans": [each]}) for each in spans)]
    sheet = tmp_path / "sheet.jsonl"
    sheet.write_text("\n".join(lines))
    found = import_sheets([sheet], WLP, POOL)
    told = [(1, "broken JSON"), (3, "not of the form"), (4, "not in the text"), (5, "not known")]
    assert len(found.complaints) == len(told)
    for complaint, (line, words) in zip(found.complaints, told, strict=True):
        assert complaint.startswith(f"{sheet}:{line}")
        assert words in complaint


def test_labels_are_escaped_in_label_studios_configuration() -> None:
    class Odd:
        name, kind, labels = "odd", "classification", ('a"/><script>', "b&c")
        instruction, check_target = "", staticmethod(lambda target: None)

    root = ElementTree.fromstring(label_studio_config(Odd()))
    assert [choice.get("value") for choice in root.iter("Choice")] == list(Odd.labels)


@pytest.mark.parametrize(
    ("task", "answer", "target"),
    [
        (WLP, {"spans": [{"start": 0, "end": 3, "label": "Action"}]}, "Add [Action]"),
        (FEVER, {"accept": ["SUPPORTS"]}, "SUPPORTS"),
        (NQ, {"user_input": " 5 ml "}, "5 ml"),
    ],
)
def test_prodigy_there_and_back(
    tmp_path: Path, task: TaskSpec, answer: dict[str, Any], target: str
) -> None:
    sheet = tmp_path / "sheet.jsonl"
    write_sheet(sheet, task, ITEMS[:2])
    first, second = map(json.loads, sheet.read_text().splitlines())
    assert (first["text"], first["meta"]["id"]) == (SOURCES[0], IDS[0])
    given = [
        {**first, **answer, "answer": "accept", "_annotator_id": "berta"},
        {**second, "answer": "ignore", "_annotator_id": "berta"},
        {"text": "no id"},
    ]
    sheet.write_text("".join(json.dumps(row) + "\n" for row in given))
    found = import_sheets([sheet], task, POOL)
    assert found.labels == {IDS[0]: {"berta": target}}
    assert found.unlabelled == 1
    assert len(found.complaints) == 1


def test_files_of_another_form_are_refused(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.csv", "id,text\n1,2\n", "no column source, label, annotator"),
        ("a.json", "{", "broken JSON"),
        ("a.json", "{}", "expected a list"),
        ("a.xlsx", "PK", "expected .csv"),
        ("a.csv", b"\xff\xfe", "UTF-8"),
    ):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=message):
            import_sheets([path], WLP, POOL)


# --- Agreement


def test_cohens_kappa_by_hand() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5, so κ = 0.4."""
    one = ["yes"] * 25 + ["no"] * 25
    other = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(one, other) == pytest.approx(0.4)
    assert cohen_kappa(one, one) == 1.0
    assert cohen_kappa(["yes"], ["yes"]) is None


def test_fleiss_kappa_of_the_published_example() -> None:
    """14 raters, 10 subjects, 5 categories: κ = 0.210 (Fleiss 1971; Wikipedia's table)."""
    counts = np.array(
        [
            [0, 0, 0, 0, 14],
            [0, 2, 6, 4, 2],
            [0, 0, 3, 5, 6],
            [0, 3, 9, 2, 0],
            [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0],
            [3, 2, 6, 3, 0],
            [2, 5, 3, 2, 2],
            [6, 5, 2, 1, 0],
            [0, 2, 2, 3, 7],
        ]
    )
    assert fleiss_kappa(counts) == pytest.approx(0.20993, abs=1e-5)
    assert fleiss_kappa(np.array([[2, 0], [3, 0]])) is None


def test_span_f1_by_hand() -> None:
    one = ["Add [Action] 5 ml [Amount]", ""]
    other = ["Add [Action] 5 [Amount]", "x [Reagent]"]
    assert span_f1(one, other, WLP.labels) == pytest.approx(2 * 1 / (2 + 3))
    assert span_f1([""], [""], WLP.labels) == 1.0


def test_the_majority_decides_and_ties_are_conflicts() -> None:
    labels = {
        "a": {"x": "YES", "y": "YES", "z": "NO"},
        "b": {"x": "YES", "y": "NO"},
        "c": {"x": "NO"},
    }
    task = get_task("multipit_id")
    merged = merge(task, labels)
    assert merged.targets == {"a": "YES", "c": "NO"}
    assert merged.conflicts == {"b": {"x": "YES", "y": "NO"}}
    report = agreement(task, labels)
    assert report["texts_with_several_labels"] == 2
    assert report["pairs"]["x and y"]["same"] == 0.5
    # P = (1/3, 0), p = (3/5, 2/5): κ = (1/6 − 13/25) / (1 − 13/25).
    assert report["fleiss_kappa"] == pytest.approx((1 / 6 - 13 / 25) / (12 / 25))


def test_entities_are_merged_one_by_one() -> None:
    labels = {
        "a": {
            "x": "Add [Action] 5 ml [Amount] 5 ml [Amount]",
            "y": "Add [Action] 5 ml [Amount] buffer [Reagent]",
            "z": "5 ml [Amount] 5 ml [Amount]",
        },
        "b": {"x": "Add [Action]", "y": "5 ml [Amount]"},
    }
    merged = merge(WLP, labels)
    assert merged.targets == {"a": "Add [Action] 5 ml [Amount] 5 ml [Amount]", "b": ""}
    assert merged.conflicts == {}


# --- The program


def test_choose_import_and_bill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DORA_DATA_DIR", raising=False)
    task = ["--task=fever"]
    sheet, copy, labels = tmp_path / "sheet.csv", tmp_path / "copy.csv", tmp_path / "labels.jsonl"
    for choice in ("diversity", "random"):
        given = ["--human", "--count=6", f"--choose={choice}", f"--output={sheet}"]
        assert annotate.main([*task, *given]) == 0
    assert "6 of 900 texts, by random" in capsys.readouterr().out
    copy.write_bytes(sheet.read_bytes())
    give(sheet, ["SUPPORTS"] * 6, "anna")
    give(copy, ["SUPPORTS"] * 4 + ["REFUTES", ""], "berta")
    back = [*task, f"--import_file={sheet}", f"--import_file={copy}", f"--output={labels}"]
    for _ in range(2):  # a second import pays nothing again
        assert annotate.main(back) == 0
    report = json.loads((tmp_path / "labels.receipt.json").read_text())
    assert report["rows"] == {"labelled": 5, "conflicts": 1, "not_filled_in": 1, "bad": 0}
    assert report["agreement"]["pairs"]["anna and berta"]["same"] == pytest.approx(4 / 5)
    assert len(labels.read_text().splitlines()) == 5
    (row,) = Ledger(tmp_path / "labels.ledger.jsonl").rows()
    assert (row.examples, row.unit, row.stage) == (11, "label", "labels")
    assert row.dollars == pytest.approx(11 * 0.129) == pytest.approx(report["usd"])
    give(copy, ["SUPPORTS"] * 5 + ["MAYBE"], "berta")
    assert annotate.main(back) == 2
    assert "the label 'MAYBE' is not known" in capsys.readouterr().err
    assert annotate.main([*back, "--on_bad_row=skip"]) == 0
