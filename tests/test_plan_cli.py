"""launch/plan.py on folders of runs: what it says, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made_sweep import value, write_sweep
from synthetic_runs import edit_json, write_run

from dora_jax.launch import plan
from dora_jax.launch.plan_input import Prices, choose, read_records


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert plan.main([*arguments, "--json=-"]) == 0
    return json.loads(capsys.readouterr().out)


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert plan.main(arguments) == 2
    return capsys.readouterr().err


def test_a_sweep_has_an_answer(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, f"--runs={sweep}", "--budget_usd=200")
    assert (found["task"], found["scale"], found["results"]) == ("wlp", "rehearsal", 16)
    assert [curve["arm"] for curve in found["curves"]] == ["annotate", "distill"]
    # 0.25 USD a label and a cent a second: 3.20 USD of annotating, 14.20 of distilling.
    best, second = found["plans"]
    assert (best["strategy"], best["labels"]) == ("annotate", int((200 - 3.20) / 0.25))
    assert second["labels"] == int((200 - 14.20) / 0.25)
    expected = (value("annotate", 787, 0) + value("annotate", 787, 1)) / 2
    assert best["value"] == pytest.approx(expected, abs=0.3)
    assert best["interval"][0] < expected < best["interval"][1]
    assert found["decided"] and found["measure_next"] == []
    assert found["scatter_of_a_run"]["freedom"] == 10
    label = next(b for b in found["break_even"] if b["of"] == "label price" and b["at"])
    assert label["winner"] == "distill" and label["at"] > 0.25
    assert len(found["measured"]) == 8 and sum(p["on_front"] for p in found["measured"]) >= 4


def test_the_text_says_the_same(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([f"--runs={sweep}", "--budget_usd=60"]) == 0
    said = capsys.readouterr().out
    assert "REHEARSAL" in said
    assert re.search(r"For \$60\.00: (annotate|distill), \d+ labels, expected micro_f1", said)
    assert "Within 1 point of the best" in said and "Where the winner changes" in said


def test_prices_given_replace_those_paid(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dear = as_json(
        capsys,
        f"--runs={sweep}",
        "--budget_usd=2000",
        "--price_usd_per_label=5",
        "--price_usd_per_device_hour=36",
    )
    assert dear["market"]["label_usd"] == pytest.approx(5.0)
    distill = next(p for p in dear["plans"] if p["strategy"] == "distill")
    assert distill["work_usd"] == pytest.approx(2 * 14.20)  # at 36 USD, not 18
    shared = as_json(capsys, f"--runs={sweep}", "--budget_usd=2000", "--students=10")
    cheaper = next(p for p in shared["plans"] if p["strategy"] == "distill")
    assert cheaper["work_usd"] == pytest.approx(14.20 - 0.9 * 9.0)  # 900 s of the teacher's


def test_one_run_says_what_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "one", ("annotate", "distill"), values={"annotate": 25, "distill": 35})
    assert plan.main([f"--runs={tmp_path}", "--budget_usd=80"]) == 0
    said = capsys.readouterr().out
    assert "Runs are too few for a curve" in said and "Measure next" in said
    line = re.search(r"python launch/run.py --gin_file=\S+ (.*)", said)
    assert line is not None and "--gin.NUM_LABELS=50 --gin.SEED=0" in line[1]
    assert "measured by the run above too" in said


def test_unfinished_and_broken_runs_are_named_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "good", values={"distill": 30.0})
    write_run(tmp_path / "cut", status="stopped")
    capped = write_run(tmp_path / "capped", values={"distill": 20.0})
    manifest = capped / "evaluate-distill" / "manifest.json"
    outputs = json.loads(manifest.read_text())["outputs"] | {"stopped_by": "its cap"}
    edit_json(manifest, outputs=outputs)
    bad = write_run(tmp_path / "bad", values={"distill": 99.0})
    (bad / "config.json").write_text("{")
    (result,), remarks = (lambda c: (c.results, c.remarks))(
        choose(read_records(str(tmp_path)), None, None)
    )
    assert (result.name, result.value) == ("good", 30.0)
    assert any("cut (distill) is stopped" in remark for remark in remarks)
    assert any("capped (distill) is budget: its cap" in remark for remark in remarks)


def test_compute_without_a_price_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "one", values={"distill": 30.0})
    free = choose(read_records(str(tmp_path), Prices(device_hour_usd=0.0)), None, None)
    assert free.results[0].device_usd == 0.0
    assert not any("no price" in remark for remark in free.remarks)  # a price of 0 was given


def test_other_tasks_and_scales_are_never_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", values={"distill": 30.0})
    other = write_run(tmp_path / "b", values={"distill": 90.0})
    config = other / "config.json"
    config.write_text(config.read_text().replace('"rehearsal"', '"paper"'))
    said = error(capsys, f"--runs={tmp_path}", "--budget_usd=9")
    assert "wlp, paper, micro_f1: 1 results" in said and "--scale" in said
    found = as_json(capsys, f"--runs={tmp_path}", "--budget_usd=99", "--scale=paper")
    assert [p["value"] for p in found["plans"]] == [90.0]
    assert any("another task or scale" in remark for remark in found["remarks"])
    assert "No result fits --task=nq" in error(
        capsys, f"--runs={tmp_path}", "--budget_usd=9", "--task=nq"
    )


def test_errors_teach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Add --runs=DIR" in error(capsys, "--budget_usd=5")
    assert "no such folder" in error(capsys, "--runs=nowhere", "--budget_usd=5")
    assert "holds no run" in error(capsys, f"--runs={tmp_path}", "--budget_usd=5")
    assert "above 0" in error(capsys, f"--runs={tmp_path}", "--budget_usd=-1")
    assert "above 0" in error(capsys, f"--runs={tmp_path}", "--budget_usd=nan")
    assert "at least 0" in error(
        capsys, f"--runs={tmp_path}", "--budget_usd=5", "--price_usd_per_label=-1"
    )
    write_run(tmp_path / "one", status="running")
    assert "finished yet" in error(capsys, f"--runs={tmp_path}", "--budget_usd=5")
    assert "takes no gin settings" in error(
        capsys, f"--runs={tmp_path}", "--budget_usd=5", "--gin.SEED=1"
    )


def test_json_goes_into_a_file(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert plan.main([f"--runs={sweep}", "--budget_usd=60", f"--json={file}"]) == 0
    assert json.loads(file.read_text())["budget_usd"] == 60.0
