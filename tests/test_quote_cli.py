"""launch/quote.py: what is printed, what JSON holds, which mistakes are told, and the audit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dora_jax.launch import gin_config, quote
from dora_jax.launch.gin_config import build
from dora_jax.launch.quote_audit import audit_of
from dora_jax.launch.quote_facts import data_facts

ROOT = Path(__file__).resolve().parents[1]
RUN = "--gin_file=gin/wlp_distill.gin"
HARDWARE = "a100-40gb:1,a100-40gb:4,v5e:4,h200:1,V5E:64"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run directory that is not there, so that nothing but the settings is looked at."""
    return f"--gin.MODEL_DIR='{tmp_path_factory.mktemp('nothing') / 'run'}'"


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DORA_DATA_DIR", raising=False)


def quoted(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert quote.main([*arguments, "--json=-"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("no_data")
def test_json_says_who_can_hold_the_run(capsys: pytest.CaptureFixture[str], elsewhere: str) -> None:
    found = quoted(capsys, RUN, "--scale=paper", f"--hardware={HARDWARE}", elsewhere)
    fits = {one["hardware"]: one["fits"] for one in found["quotes"]}
    assert fits == {
        "a100-40gb:1": False,
        "a100-40gb:4": True,
        "v5e:4": False,
        "h200:1": True,
        "V5E:64": True,
    }
    cheapest = next(q for q in found["quotes"] if q["hardware"] == found["cheapest"])
    for one in found["quotes"]:
        if one["fits"]:
            assert one["bytes_per_device"] <= one["usable_bytes_per_device"]
            assert 0 < one["hours_low"] < one["hours"]
            assert one["dollars"] == pytest.approx(
                one["hours"] * one["devices"] * one["price_usd_per_device_hour"]
            )
            assert cheapest["dollars"] <= one["dollars"]
            assert one["price_source"]
            assert one["price_date"]
        else:
            assert one["bytes_per_device"] > one["usable_bytes_per_device"]
            assert one["dollars"] is one["hours"] is None


@pytest.mark.usefixtures("no_data")
def test_it_tells_what_bfloat16_parameters_would_fit(
    capsys: pytest.CaptureFixture[str], elsewhere: str
) -> None:
    hardware = "--hardware=a100-40gb:1,h100:1,h200:1"
    assert quote.main([RUN, hardware, elsewhere]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "TEACHER_PARAM_DTYPE" in line]
    assert line.startswith("h100:1 can hold the run")
    stored = "--gin.TEACHER_PARAM_DTYPE='bfloat16'"
    found = quoted(capsys, RUN, hardware, elsewhere, stored)
    assert [one["fits"] for one in found["quotes"]] == [False, True, True]
    assert found["fit_with_bfloat16_parameters"] == []


@pytest.mark.usefixtures("no_data")
def test_the_tables_say_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, elsewhere: str
) -> None:
    file = tmp_path / "quotes.json"
    assert quote.main([RUN, "--hardware=h200:1,v5e:4", f"--json={file}", elsewhere]) == 0
    printed = capsys.readouterr().out
    found = json.loads(file.read_text())
    dollars = found["quotes"][0]["dollars"]
    assert f"{dollars:,.2f}" in printed
    assert "v5e:4 does not fit" in printed
    assert "stages that do not fit: teach, label" in printed
    assert "Cheapest: h200:1 on demand" in printed
    assert "Not counted: machine boot" in printed
    assert "24.5%" in printed


@pytest.mark.usefixtures("no_data")
def test_without_hardware_the_fewest_of_each_kind_that_fit_are_quoted(
    capsys: pytest.CaptureFixture[str], elsewhere: str
) -> None:
    found = quoted(capsys, RUN, "--scale=paper", elsewhere)
    asked = {one["hardware"]: one for one in found["quotes"]}
    assert set(asked) > {"a100-40gb:4", "a100:2", "h100:2", "h200:1", "v4:4", "v6e:4"}
    assert all(one["fits"] for one in asked.values())
    fewer = "a100-40gb:2,a100:1,h100:1,v5e:8"
    found = quoted(capsys, RUN, "--scale=paper", f"--hardware={fewer}", elsewhere)
    assert not any(one["fits"] for one in found["quotes"])


@pytest.mark.usefixtures("no_data")
def test_labels_and_the_budget_are_told(capsys: pytest.CaptureFixture[str], elsewhere: str) -> None:
    arguments = [RUN, "--scale=paper", "--hardware=h200:1", elsewhere]
    labels = quoted(capsys, *arguments)["labels"]
    assert labels == {"count": 1000, "usd_per_label": 0.26, "dollars": pytest.approx(260.0)}
    for budget, place in ((100, "above"), (300, "within")):
        assert quote.main([*arguments, f"--gin.BUDGET_USD={budget}"]) == 0
        told = capsys.readouterr().out
        assert "1,000 labels x 0.26 USD = 260.00 USD" in told
        assert f"{place} BUDGET_USD = {budget}.00" in told
    assert quote.main(arguments) == 0
    assert "BUDGET_USD" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_data")
def test_what_makes_a_quote_doubtful_is_noted(
    capsys: pytest.CaptureFixture[str], elsewhere: str
) -> None:
    arguments = [RUN, "--scale=paper", elsewhere, "--hardware=h200:3,h200:2,cpu:1"]
    odd, even, cpu = quoted(capsys, *arguments)["quotes"]
    assert any("3 devices do not divide" in note for note in odd["notes"])
    assert not any("do not divide" in note for note in even["notes"])
    assert any("h200 spot is of no date" in note for note in even["notes"])
    assert cpu["dollars"] in (0.0, None)
    assert quoted(capsys, *arguments)["cheapest"] == "h200:2"  # a CPU has no price: not for nothing
    assert quote.main([*arguments, "--gin.UNCOUNTED_HOURS=2"]) == 0
    told = capsys.readouterr().out
    assert "2.00 hours outside the program" in told
    assert "note: 3 devices do not divide" in told


@pytest.mark.usefixtures("no_data")
def test_a_slice_that_nobody_rents_out_is_noted(
    capsys: pytest.CaptureFixture[str], elsewhere: str
) -> None:
    asked = "--hardware=v5e:64,v5e:512,v4:12,v4:16,h200:4"
    notes = [
        [note for note in one["notes"] if "slice" in note]
        for one in quoted(capsys, RUN, "--scale=paper", elsewhere, asked)["quotes"]
    ]
    assert [len(each) for each in notes] == [0, 1, 1, 0, 0]
    assert "512 chips" in notes[1][0] and "64, 128, 256)" in notes[1][0]
    assert "12 chips" in notes[2][0]


@pytest.mark.usefixtures("no_data")
def test_nothing_that_fits_has_no_cheapest(
    capsys: pytest.CaptureFixture[str], elsewhere: str
) -> None:
    assert quoted(capsys, RUN, "--hardware=v5e:4", elsewhere)["cheapest"] is None
    assert quote.main([RUN, "--hardware=v5e:4", elsewhere]) == 0
    assert "None of this hardware can hold the run." in capsys.readouterr().out


@pytest.mark.usefixtures("no_data")
def test_a_rehearsal_counts_the_rows_of_its_sample(
    capsys: pytest.CaptureFixture[str], elsewhere: str
) -> None:
    found = quoted(capsys, RUN, "--scale=rehearsal", elsewhere)
    assert [one["hardware"] for one in found["quotes"]] == ["cpu"]
    assert (found["data"]["labels"], found["data"]["unlabeled"]) == (300, 2900)
    # `make run` at 1957220 was billed 339.2 seconds.
    assert 339.2 / 1.5 < 3600 * found["quotes"][0]["hours"] < 339.2 * 1.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Which run"),
        ([RUN, "--run=runs/x"], "one of the two"),
        ([RUN, "--hardware=k80:4"], "there is no 'k80' in the table"),
        ([RUN, "--hardware=h100:some"], "the count is 'some'"),
        ([RUN, f"--hardware=h100:{'9' * 400}"], "1 to 99999"),
        ([RUN, "--gin.FSDP=4", "--hardware=h100:6"], "multiple of 4"),
        ([RUN, "--json=/nowhere/at/all.json"], "cannot be written"),
        ([RUN, "--hardwear=h100:8"], "--hardware"),
        (["--run=/nowhere"], "no run is there"),
        (["--run=/nowhere", "--hardware=h100:8"], "leave"),
    ],
)
def test_mistakes_are_told(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert quote.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error


def test_it_needs_no_tensorflow_and_starts_no_device() -> None:
    code = f"""
import sys
from dora_jax.launch import quote
assert quote.main([{RUN!r}, "--hardware=h100:8", "--json=-"]) == 0
assert not {{"tensorflow", "torch"}} & set(sys.modules), sorted(sys.modules)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def ledger_row(stage: str, seconds: float, **changes: object) -> dict:
    row = {
        "run": "run",
        "row_id": f"{stage}-1",
        "stage": stage,
        "strategy": "shared",
        "scale": "rehearsal",
        "code_version": "1",
        "price_usd_per_unit": 2.0,
        "price_source": "set by the user",
        "price_date": "2026-11-21",
        "unit": "device",
        "dollars": 2.0 * seconds / 3600,
        "finished_at": "2026-11-21T12:00:00+00:00",
        "device_kind": "cpu",
        "devices_held": 1,
        "seconds": {"step": seconds / 2, "idle": seconds / 2} if seconds else {},
    }
    return row | changes


@pytest.mark.usefixtures("no_data")
def test_a_run_is_audited_against_its_ledger(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides = [gin_config.Override("PRICE_USD_PER_DEVICE_HOUR", "2.0")]
    (tmp_path / "config.gin").write_text(
        build("gin/wlp_distill.gin", "rehearsal", overrides).text, encoding="utf-8"
    )
    rows = [
        ledger_row("labels", 0.0, device_kind="", devices_held=0, dollars=78.0),
        ledger_row("teach", 30.0),
        ledger_row("teach", 40.0, row_id="teach-2"),
        ledger_row("something new", 5.0),
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "ledger.jsonl").write_text(lines, encoding="utf-8")
    found = quoted(capsys, f"--run={tmp_path}")
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert (found["hardware"], found["devices"]) == ("cpu", 1)
    assert "labels" not in stages
    assert stages["teach"]["billed_seconds"] == pytest.approx(70.0)
    assert stages["teach"]["billed_dollars"] == pytest.approx(140.0 / 3600)
    assert 35 < stages["teach"]["quoted_seconds"] < 140
    assert stages["something new"]["quoted_seconds"] == 0
    assert found["billed_seconds"] == pytest.approx(75.0)
    assert quote.main([f"--run={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    ratio = stages["teach"]["billed_seconds"] / stages["teach"]["quoted_seconds"]
    assert f"{ratio:.2f}" in next(line for line in printed.splitlines() if "teach " in line)


def test_a_ledger_without_time_has_no_audit(tmp_path: Path) -> None:
    config = build("gin/wlp_distill.gin", "rehearsal").config
    with pytest.raises(ValueError, match="no stage that took time"):
        audit_of(config, [], tmp_path)


@pytest.mark.usefixtures("no_data")
def test_data_that_nobody_has_seen_are_assumed(tmp_path: Path) -> None:
    facts = data_facts(build("gin/wlp_distill.gin", "paper").config, tmp_path)
    assert facts.origin.startswith("assumed")
    assert facts.unlabeled == 8557  # TRAIN_STEPS are 50 epochs of them
