"""The ledger: rows that are never lost, mixed or edited, and the dollars in them."""

from __future__ import annotations

import fcntl
import json
import logging
import resource
import subprocess
import sys
import threading
from datetime import datetime, timedelta

import pytest

from dora_jax.cost.ledger import (
    NOT_COUNTED,
    SHARED,
    Ledger,
    RunFacts,
    bill_stage,
    code_version,
    labels_row,
    outside_row,
    stage_row,
)
from dora_jax.cost.meter import LAUNCH, Charge, Holding, Meter
from dora_jax.cost.prices import NOT_PRICED, PriceBook, user_price

FACTS = RunFacts(run="wlp_distill-rehearsal", scale="rehearsal", code_version="v0.1-3-gabc")
BOOK = PriceBook.load()
A100S = Holding("NVIDIA A100-SXM4-80GB", 4, BOOK.device_price("NVIDIA A100-SXM4-80GB"))
CPU = Holding("cpu", 1, BOOK.device_price("cpu"))


def charge(holding: Holding | None = A100S, row_id="teach-1", stage="teach", **work):
    seconds = {"compile": 900.0, "step": 2000.0, "input wait": 250.0, "idle": 450.0}
    return Charge(stage, holding, row_id, **{"seconds": seconds, "tokens": 36_000_000, **work})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def test_a_stage_costs_its_seconds_times_the_devices_held():
    row = stage_row(FACTS, "distill", charge(examples=5, padding_tokens=6, restarts=1))
    assert row.device_hours == 4.0  # 3,600 seconds on four devices
    assert row.dollars == 4 * 1.875
    assert (row.price_usd_per_unit, row.unit, row.price_date) == (1.875, "gpu", "2023")
    assert (row.device_kind, row.devices_held) == ("NVIDIA A100-SXM4-80GB", 4)
    assert row.tokens_per_second == 10_000
    assert row.tokens_per_dollar == 36_000_000 / 7.5
    assert (row.run, row.scale, row.code_version) == (FACTS.run, "rehearsal", "v0.1-3-gabc")
    assert (row.stage, row.strategy, row.row_id) == ("teach", "distill", "teach-1")
    assert (row.examples, row.padding_tokens, row.restarts) == (5, 6, 1)
    assert row.not_counted == NOT_COUNTED
    assert datetime.fromisoformat(row.finished_at).utcoffset() == timedelta(0)


def test_mfu_is_over_the_busy_phases_of_all_devices():
    assert stage_row(FACTS, "distill", charge(flops=2250 * 4 * 312e12 / 2)).mfu == 0.5
    assert stage_row(FACTS, "distill", charge(flops=0.0)).mfu is None
    assert stage_row(FACTS, "distill", charge(holding=CPU, flops=1e15)).mfu is None


def test_an_unpriced_cpu_costs_a_marked_nothing():
    row = stage_row(FACTS, SHARED, charge(holding=CPU))
    assert row.dollars == 0
    assert row.tokens_per_dollar is None
    assert row.tokens_per_second == 10_000
    assert row.price_source == NOT_PRICED


def test_a_charge_without_a_price_is_no_row():
    with pytest.raises(ValueError, match="hold"):
        stage_row(FACTS, SHARED, charge(holding=None))


def test_labels_cost_their_count_and_are_paid_once(ledger):
    row = labels_row(FACTS, "wlp", 1000, BOOK.label_price("wlp"))
    assert row.dollars == pytest.approx(260)
    assert (row.unit, row.examples, row.device_hours, row.seconds) == ("label", 1000, 0, {})
    ledger.append(row)
    with pytest.raises(ValueError, match="never edited"):
        ledger.append(labels_row(FACTS, "wlp", 1000, BOOK.label_price("wlp")))
    assert ledger.rows() == [row]
    with pytest.raises(ValueError, match="-1"):
        labels_row(FACTS, "wlp", -1, BOOK.label_price("wlp"))


def test_stated_hours_outside_the_process_are_paid():
    row = outside_row(FACTS, A100S, 0.5)
    assert row.device_hours == 2.0
    assert row.dollars == 2 * 1.875
    assert row.not_counted == ()
    with pytest.raises(ValueError, match="-1"):
        outside_row(FACTS, A100S, -1)


def test_rows_come_back_as_they_were_written(ledger):
    rows = [stage_row(FACTS, "distill", charge(row_id=f"teach-{i}")) for i in range(3)]
    for row in rows:
        ledger.append(row)
    again = Ledger(ledger.path)
    assert again.rows() == rows
    assert again.has("teach-2") and not again.has("teach-3")
    assert len(ledger.path.read_text().splitlines()) == 3


def test_totals_are_of_the_rows_asked_for(ledger):
    ledger.append(labels_row(FACTS, "wlp", 10, BOOK.label_price("wlp")))
    ledger.append(stage_row(FACTS, "distill", charge(row_id="a", tokens=100)))
    ledger.append(stage_row(FACTS, "distill", charge(row_id="b", stage="label", tokens=20)))
    ledger.append(stage_row(FACTS, "annotate", charge(row_id="c", stage="annotate", tokens=3)))
    assert ledger.totals().dollars == pytest.approx(2.6 + 3 * 7.5)
    distill = ledger.totals(strategies=("distill", SHARED))
    assert (distill.rows, distill.tokens, distill.device_hours) == (3, 120, 8.0)
    assert distill.dollars == pytest.approx(2.6 + 15)
    assert distill.tokens_per_second == 120 / 7200
    assert distill.tokens_per_dollar == pytest.approx(120 / 17.6)
    label = ledger.totals(stages=("label",), strategies=("distill",))
    assert (label.rows, label.tokens) == (1, 20)
    nothing = ledger.totals(stages=())
    assert (nothing.rows, nothing.dollars) == (0, 0)
    assert nothing.tokens_per_second is None and nothing.tokens_per_dollar is None


def test_a_ledger_that_is_not_there_is_empty_and_not_made(ledger):
    assert ledger.rows() == []
    assert not ledger.path.exists()


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_torn_last_line_is_set_aside_and_reported(ledger, caplog, cut):
    rows = [stage_row(FACTS, "distill", charge(row_id=f"teach-{i}")) for i in range(3)]
    for row in rows:
        ledger.append(row)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[: -cut - 1])
    torn = whole[: -cut - 1].splitlines()[-1]
    with caplog.at_level(logging.WARNING):
        again = Ledger(ledger.path)
    assert again.rows() == rows[:2]
    assert ledger.path.with_suffix(".torn").read_bytes() == torn + b"\n"
    assert "torn by a crash" in caplog.text and "2 rows" in caplog.text
    again.append(rows[2])
    assert again.rows() == rows


def test_a_row_that_only_lacks_its_line_end_is_kept(ledger):
    rows = [stage_row(FACTS, "distill", charge(row_id=f"teach-{i}")) for i in range(2)]
    ledger.append(rows[0])
    ledger.path.write_bytes(ledger.path.read_bytes()[:-1])
    again = Ledger(ledger.path)
    again.append(rows[1])
    assert again.rows() == rows
    assert not ledger.path.with_suffix(".torn").exists()


def test_a_line_torn_by_another_process_meanwhile_is_not_built_upon(ledger):
    rows = [stage_row(FACTS, "distill", charge(row_id=f"teach-{i}")) for i in range(2)]
    ledger.append(rows[0])
    with open(ledger.path, "ab") as file:
        file.write(b'{"run": "wlp')
    ledger.append(rows[1])
    assert ledger.rows() == rows


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"run": "a"}', '{"colour": 1}'])
def test_a_wrong_line_is_named(ledger, line):
    ledger.append(stage_row(FACTS, "distill", charge()))
    with open(ledger.path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="line 2: not a row"):
        Ledger(ledger.path)
    assert len(ledger.path.read_text().splitlines()) == 2


def test_a_full_disk_leaves_the_rows_there_are(ledger):
    rows = [stage_row(FACTS, "distill", charge(row_id=f"teach-{i}")) for i in range(2)]
    ledger.append(rows[0])
    before = ledger.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system lets a file grow by 100 bytes more, then refuses: as on a disk that fills up.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(OSError, match="cannot write the ledger.*untouched.*free some space"):
            ledger.append(rows[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ledger.path.read_bytes() == before
    ledger.append(rows[1])
    assert ledger.rows() == rows


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    ledger = Ledger(tmp_path / "missing" / "ledger.jsonl")
    with pytest.raises(OSError, match=r"cannot write the ledger.*missing/ledger.jsonl"):
        ledger.append(stage_row(FACTS, "distill", charge()))


def test_a_bucket_is_refused():
    with pytest.raises(ValueError, match="local path"):
        Ledger("gs://bucket/run/ledger.jsonl")


WRITER = """
import sys
from dora_jax.cost.ledger import Ledger, RunFacts, labels_row
from dora_jax.cost.prices import user_price

ledger, price = Ledger(sys.argv[1]), user_price(0.1, "label")
facts = RunFacts(run="x" * 5000, scale="rehearsal", code_version="v")
print("ready", flush=True)
sys.stdin.readline()
for count in range(40):
    ledger.append(labels_row(facts, sys.argv[2], count, price))
"""


def test_two_processes_do_not_mix_their_lines(ledger):
    command = [sys.executable, "-c", WRITER, str(ledger.path)]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=30)
        assert writer.returncode == 0
    ids = [row.row_id for row in ledger.rows()]
    for name in ("one", "two"):
        assert [i for i in ids if name in i] == [f"labels-{name}-{n}" for n in range(40)]
    assert len(ids) == 80


def test_who_appends_waits_for_who_holds_the_ledger(ledger):
    first, second = (stage_row(FACTS, "distill", charge(row_id=f"teach-{i}")) for i in range(2))
    ledger.append(first)
    other = threading.Thread(target=ledger.append, args=(second,))
    with open(ledger.path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other.start()
        other.join(timeout=0.2)
        assert other.is_alive()
        assert len(file.read().splitlines()) == 1
    other.join(timeout=10)
    assert ledger.rows() == [first, second]


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def metered(tmp_path):
    """A function that starts the run's meter, as a process that has just begun does."""
    clock = Clock()

    def start(ledger):
        meter = Meter(
            tmp_path / "meter.json",
            is_billed=ledger.has,
            clock=clock,
            process_started=clock.now,
            persist_every_seconds=0,
        )
        meter.hold("cpu", 2, user_price(1.8))
        return meter, clock

    return start


def test_a_run_is_billed_stage_by_stage(ledger, metered):
    meter, clock = metered(ledger)
    clock.now += 10
    for stage in ("teach", "distill"):
        with meter.stage(stage), meter.phase("step"):
            clock.now += 100
        (row,) = bill_stage(meter, ledger, stage, "distill", FACTS)
        assert row.seconds == {"step": 100.0}
        assert row.dollars == pytest.approx(0.1)
        assert bill_stage(meter, ledger, stage, "distill", FACTS) == ()
    bill_stage(meter, ledger, LAUNCH, SHARED, FACTS)
    assert ledger.totals().seconds == clock.now
    assert ledger.totals().dollars == pytest.approx(0.21)
    assert meter.spent_usd(ledger.totals().dollars) == pytest.approx(0.21)


@pytest.mark.parametrize("step", ["append", "settle"])
def test_a_crash_in_billing_neither_loses_nor_doubles(ledger, metered, monkeypatch, step):
    meter, clock = metered(ledger)
    with meter.stage("teach"):
        clock.now += 100

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger if step == "append" else meter, step, crash)
        bill_stage(meter, ledger, "teach", "distill", FACTS)
    again, _ = metered(Ledger(ledger.path))
    billed = bill_stage(again, ledger, "teach", "distill", FACTS)
    assert len(billed) == (1 if step == "append" else 0)
    assert ledger.totals().seconds == 100


def test_what_the_meter_could_not_see_is_in_the_row(ledger, metered):
    meter, clock = metered(ledger)
    meter.starts_with_process = False
    with meter.stage("teach"):
        clock.now += 1
    (row,) = bill_stage(meter, ledger, "teach", "distill", FACTS)
    assert row.not_counted[:-1] == NOT_COUNTED
    assert "first import" in row.not_counted[-1]


def test_rows_are_plain_json(ledger):
    ledger.append(stage_row(FACTS, "distill", charge()))
    row = json.loads(ledger.path.read_text())
    assert row["seconds"]["step"] == 2000.0
    assert row["not_counted"] == list(NOT_COUNTED)


def test_the_code_version_is_one_word():
    assert code_version() and " " not in code_version()
