"""The page about runs: whole, escaped, and the same numbers as the plan; no browser here."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_sweep import HOSTILE, write_llm_runs, write_sweep
from synthetic_runs import write_run

from dora_jax.launch import plan, report
from dora_jax.report import figures, page
from dora_jax.report.content import Page, Sample, Section, Table
from dora_jax.report.exports import csv_of
from dora_jax.report.page import html_of, json_in_html

FEW = "--replicates=200"
FIGURES = ("pareto", "over-labels", "stages", "phases", "classes")


class Reader(HTMLParser):
    """Elements and texts of a page, and what it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self._inside = tag
        for name, value in attrs:
            if name in ("src", "href"):
                self.links.append(value or "")
            elif name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside in ("script", "style") else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep, its page and its figures."""
    sweep = write_sweep(tmp_path_factory.mktemp("sweep"))
    assert report.main([f"--runs={sweep}", "--budget_usd=120", FEW]) == 0
    return sweep


@pytest.fixture(scope="module")
def shown(folder: Path) -> Reader:
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


def state_of(read: Reader) -> dict:
    return json.loads(next(text for text in read.scripts if text.startswith('{"figures"')))


def test_the_page_is_one_file_that_fetches_nothing(folder: Path, shown: Reader) -> None:
    beside = [link for link in shown.links if not link.startswith("#")]
    assert all(re.fullmatch(r"figures/[\w-]+\.(svg|png|csv)", link) for link in beside)
    assert not {"link", "img", "iframe", "object"} & set(shown.elements)
    assert len(shown.ids) == len(set(shown.ids))
    assert {link[1:] for link in shown.links if link.startswith("#")} <= set(shown.ids)
    assert (folder / "report.html").stat().st_size < 2e6
    for link in beside:
        assert (folder / link).stat().st_size > 100, link


def test_it_says_what_the_plan_says(
    folder: Path, shown: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main([f"--runs={folder}", "--budget_usd=120", "--json=-", FEW]) == 0
    best = json.loads(capsys.readouterr().out)["plans"][0]
    expected = f"{best['labels']:,} labels, expected micro_f1 {best['value']:.1f}"
    assert f"For $120.00: {best['arm']}, {expected}" in shown.text
    answers = state_of(shown)["budgets"]["answers"]
    usd = [answer["usd"] for answer in answers]
    assert usd == sorted(usd) and 120.0 in usd and len(usd) > 50
    assert all(answer["rows"]["plans"] and answer["near"] for answer in answers)
    assert {answer["rows"]["plans"][0][0] for answer in answers} == {"annotate", "distill"}


def test_break_evens_and_next_runs_are_those_of_each_budget(
    folder: Path, shown: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = state_of(shown)["budgets"]["answers"]
    for answer in answers[5::25]:
        flags = [f"--runs={folder}", f"--budget_usd={answer['usd']!r}", "--json=-", FEW]
        assert plan.main(flags) == 0
        found = json.loads(capsys.readouterr().out)
        assert len(answer["rows"]["next"]) == len(found["measure_next"])
        winners = [b["winner"] for b in found["break_even"]]
        assert [row[3] for row in answer["rows"]["turns"]] == winners
        assert all(answer["text"] in text for text in answer["texts"].values())
    assert len({json.dumps(answer["rows"]["turns"]) for answer in answers}) > 20
    assert {len(answer["rows"]["next"]) for answer in answers} == {0, 3}
    assert "At a budget of $120.00, one price moved" in shown.text


def test_a_language_model_has_its_price_and_error_rate(tmp_path: Path) -> None:
    write_llm_runs(write_sweep(tmp_path, places=(100, 200, 400), seeds=1))
    assert report.main([f"--runs={tmp_path}", "--no-figures", FEW]) == 0
    page = Reader((tmp_path / "report.html").read_text())
    assert "Language models as annotators" in page.text
    assert "gpt-x 800 0.002 20.0 16.0–25.0 100 3 0.20" in page.text
    assert "llm, 800 LLM labels" in json.dumps(state_of(page)["figures"]["stages"])
    assert "over-llm-labels" in state_of(page)["figures"]
    assert "$ LLM" in page.text and "LLM labels" in page.text
    # Figures were not written, so nothing points at them.
    assert not [link for link in page.links if not link.startswith("#")]


def test_a_rehearsal_is_marked_and_the_paper_is_not(
    folder: Path, shown: Reader, tmp_path: Path
) -> None:
    assert "Rehearsal: small networks" in shown.text
    run = write_run(tmp_path / "one", values={"distill": 30.0})
    config = run / "config.json"
    config.write_text(config.read_text().replace('"rehearsal"', '"paper"'))
    assert report.main([f"--runs={tmp_path}", "--no-figures"]) == 0
    other = Reader((tmp_path / "report.html").read_text())
    assert "Rehearsal" not in other.text and "too few for a curve" in other.text
    assert "What to measure next" in other.text


def test_what_models_wrote_is_text(shown: Reader) -> None:
    assert shown.elements.count("script") == 3 and "img" not in shown.elements
    # A prediction that is markup is read as the text that it is.
    assert "<script>document.title = 'owned'</script>" in shown.text


def test_hostile_names_stay_text_everywhere() -> None:
    rows = [{"strategy": HOSTILE, "run": HOSTILE, "step": 1, "value": 2.0}]
    made = Page(
        title=HOSTILE,
        mark=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        budgets=None,
        sections=[
            Section(
                "s",
                HOSTILE,
                [HOSTILE],
                [figures.training(rows, HOSTILE)],
                [Table(HOSTILE, (HOSTILE,), [(HOSTILE,)], folded=True)],
                [Sample(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE, False)])],
            )
        ],
        footer=HOSTILE,
    )
    read = Reader(html_of(made))
    assert read.elements.count("script") == 3 and "img" not in read.elements
    hostile = " ".join(HOSTILE.split())
    # Title twice, mark, fact twice, navigation, heading, text, table thrice, sample four times …
    assert read.text.count(hostile) >= 14
    assert HOSTILE in json.dumps(state_of(read), ensure_ascii=False)


def test_json_in_a_script_ends_nothing() -> None:
    text = json_in_html({"a": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": HOSTILE}
    with pytest.raises(ValueError):
        json_in_html(float("nan"))


def test_figures_lie_beside_the_page(folder: Path) -> None:
    for name in FIGURES:
        svg = (folder / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<svg") and "var(--" not in svg
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO((folder / "figures" / "pareto.csv").read_text())))
    assert len(rows) == 8 and float(rows[0]["usd"]) == pytest.approx(28.20)
    assert {row["strategy"] for row in rows} == {"annotate", "distill"}


def test_a_spreadsheet_takes_no_text_for_a_formula() -> None:
    figure = figures.training([{"strategy": "=1+1", "run": "a", "step": 1, "value": -2.0}], "f1")
    (row,) = csv.DictReader(io.StringIO(csv_of(figure)))
    assert (row["strategy"], row["value"]) == ("'=1+1", "-2.0")


def test_costs_classes_pairs_and_provenance_are_there(shown: Reader) -> None:
    for title in ("Costs", "Classes", "Paired comparisons", "Sample predictions", "Provenance"):
        assert title in shown.text
    stages = state_of(shown)["figures"]["stages"]
    assert "human labels" in json.dumps(stages) and "pretrain-teacher" in json.dumps(stages)
    assert "annotate − distill" in shown.text
    assert "annotate-100-0" in shown.text and "Action" in json.dumps(state_of(shown))


def test_a_run_gets_its_own_page_or_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "one", ("annotate", "distill"), values={"annotate": 25.0})
    assert report.report_of_run(run) == f"Report: {run / 'report.html'}"
    assert "annotate, 100 labels" in Reader((run / "report.html").read_text()).text
    (run / "report.html").unlink()
    monkeypatch.setitem(sys.modules, "vl_convert", None)  # an accelerator host may lack it
    page._library.cache_clear()
    assert "No report: A report needs vl-convert-python" in report.report_of_run(run)
    assert not (run / "report.html").exists()


def test_runs_without_a_model_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "one", status="running")
    assert report.main([f"--runs={tmp_path}"]) == 2
    assert "finished yet" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
    assert report.main([]) == 2
    assert "Add --runs=DIR" in capsys.readouterr().err
    assert report.main([f"--runs={tmp_path}", "--output=nowhere/report.html"]) == 2
    assert "cannot be written" in capsys.readouterr().err
