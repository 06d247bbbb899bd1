"""launch/plan.py on folders of runs: what it says, what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from made_sweep import AUDIT, LLM_USD, value, write_llm_runs, write_sweep
from synthetic_runs import edit_json, write_run

from dora_jax.config import LlmConfig, ModelSource, T5Config, TrainConfig
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
    assert not found["decided"] and 1 <= len(found["measure_next"]) <= 3  # half a point ahead
    assert found["scatter_of_a_run"]["freedom"] == 10
    clear = as_json(capsys, f"--runs={sweep}", "--budget_usd=60")  # eight points ahead
    assert clear["decided"] and clear["measure_next"] == []
    assert clear["plans"][0]["arm"] == "distill" and clear["annotators"] == []
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
    for flag in ("--reach=nan", "--reach=inf", "--students=0", "--replicates=3"):
        assert "expected at least 1, 1 and 100" in error(
            capsys, f"--runs={tmp_path}", "--budget_usd=5", flag
        )
    assert "number of at least 0" in error(
        capsys, f"--runs={tmp_path}", "--budget_usd=5", "--price_usd_per_llm_label=nan"
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


@pytest.fixture(scope="module")
def with_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    return write_llm_runs(write_sweep(folder))


def test_labels_of_a_language_model_are_planned_too(
    with_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, f"--runs={with_llm}", "--budget_usd=28.30")
    assert [curve["arm"] for curve in found["curves"]] == ["annotate", "distill", "llm"]
    best = found["plans"][0]  # twice what was measured; all that people's labels cost is beyond it
    assert (best["arm"], best["labels"], best["llm_labels"]) == ("llm", 0, 1600)
    assert (best["llm_usd"], best["work_usd"]) == pytest.approx((1600 * LLM_USD, 3.20))
    measured = [point["llm_labels"] for point in found["measured"] if point["strategy"] == "llm"]
    assert measured == [100, 200, 400, 800]
    (annotator,) = found["annotators"]
    assert (annotator["model"], annotator["labels"], annotator["error_rate"]) == ("gpt-x", 800, 20)
    assert annotator["usd_per_label"] == pytest.approx(LLM_USD)
    assert annotator["audit"] == {**AUDIT, "interval": [75.0, 84.0]}
    turns = [b for b in found["break_even"] if b["of"] == "LLM label price"]
    assert [b["now"] for b in turns] == pytest.approx([LLM_USD] * 2)
    dear = as_json(
        capsys, f"--runs={with_llm}", "--budget_usd=28.30", "--price_usd_per_llm_label=0.05"
    )
    llm = next(plan for plan in dear["plans"] if plan["arm"] == "llm")
    assert llm["llm_labels"] == int((28.30 - 3.20) / 0.05)


def test_the_text_tells_how_often_a_language_model_is_wrong(
    with_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main([f"--runs={with_llm}", "--budget_usd=34"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "gpt-x: $0.002 a label, up to 800 labels used. Error rate 20.0 % (16.0–25.0 %)" in said
    assert "people's labels of 100 texts, 3 of them without a usable answer" in said
    assert "For $34.00: llm, 1,600 LLM labels, expected micro_f1" in said
    assert "LLM label price, now $0.002" in said and "$ LLM" in said


def test_a_language_model_that_nobody_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llm_runs(tmp_path, places=(200,), audit=None)
    assert plan.main([f"--runs={tmp_path}", "--budget_usd=34"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Not audited" in said and "--audit=100" in said
    # What a curve lacks is more of its labels, and the command says which.
    assert "/llm-100-LLM-labels-seed-0'" in said  # a folder that no other strategy is told
    assert "--gin.NUM_LLM_LABELS=100 --gin.SEED=0" in said and "NUM_LABELS=" not in said.replace(
        "NUM_LLM_LABELS=", ""
    )


def test_what_does_not_touch_a_strategy_makes_no_second_result(tmp_path: Path) -> None:
    """A sweep over NUM_LLM_LABELS runs `annotate` again and again, with equal results."""
    for n in (100, 200):
        write_run(
            tmp_path / f"{n}",
            ("annotate",),
            values={"annotate": 30.0},
            llm=LlmConfig("labels.jsonl", num_labels=n),
        )
    write_run(tmp_path / "other seed", ("annotate",), seed=1, values={"annotate": 30.0})
    chosen = choose(read_records(str(tmp_path)), None, None)
    assert [result.name for result in chosen.results] == ["100", "other seed"]
    assert len({result.recipe for result in chosen.results}) == 1
    assert any("1 results repeat another one" in remark for remark in chosen.remarks)


def test_hostile_names_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "$(touch owned) [bold]x \x1b[2J"
    for seed, student in enumerate((16, 32)):
        run = write_run(
            tmp_path / name / f"{seed}",
            ("annotate",),
            values={"annotate": 30.0 + seed},
            student=ModelSource(T5Config(emb_dim=student)),
        )
    assert run.is_dir()
    assert plan.main([f"--runs={tmp_path}", "--budget_usd=80"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    line = next(line for line in said.splitlines() if "launch/run.py" in line)
    echo = f"printf '%s\\n' {line.partition('launch/run.py')[2]}"
    pasted = subprocess.run(["bash", "-c", echo], cwd=tmp_path, capture_output=True, text=True)
    words = pasted.stdout.splitlines()
    assert len(words) == 4 and words[0].startswith("--gin_file=") and not pasted.stderr
    assert all("$(touch owned) [bold]x" in word for word in (words[0], words[3]))
    assert not (tmp_path / "owned").exists()
    assert len(re.findall(r"annotate \[[\d.]+ M\]", said)) >= 2  # brackets are no markup


def test_the_chosen_of_a_search_lie_on_one_curve(tmp_path: Path) -> None:
    for labels in (100, 200, 400):
        for rate in (0.1, 0.2):
            run = write_run(
                tmp_path / f"{labels}-{rate}",
                ("annotate",),
                labels=labels,
                values={"annotate": 30.0 + labels / 100},
                best_value=rate if labels == 100 else 1 - rate,
                annotate=TrainConfig(train_steps=int(100 * rate)),
            )
            told = {"cell": f"labels-{labels}", "searched": {"ANNOTATE_TRAIN_STEPS": f"{rate}"}}
            (run / "sweep.json").write_text(json.dumps(told))
    results = choose(read_records(str(tmp_path)), None, None).results
    assert sorted(r.name for r in results) == ["100-0.2", "200-0.1", "400-0.1"]
    assert len({r.recipe for r in results}) == 1
