"""The meter: where every second goes, and what a crash may cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dora_jax.cost.meter import LAUNCH, PHASES, Charge, Holding, Meter, process_age_seconds
from dora_jax.cost.prices import user_price

PRICE = user_price(3.6)  # a thousandth of a dollar a second


class Clock:
    """Time that passes when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def start(path, clock, age=0.0, **options):
    """A meter without its thread, in a process `age` seconds old."""
    return Meter(
        path,
        clock=clock,
        process_started=clock.now - age,
        persist_every_seconds=0,
        **options,
    )


def seconds_of(meter, stage):
    return next((c.seconds for c in meter.charges() if c.stage == stage), {})


def test_time_before_the_meter_is_startup(tmp_path, clock):
    meter = start(tmp_path / "meter.json", clock, age=7.0)
    clock.now += 2
    assert seconds_of(meter, LAUNCH) == {"startup": 9.0}


def test_every_second_has_one_phase(tmp_path, clock):
    meter = start(tmp_path / "meter.json", clock, age=5.0)
    with meter.phase("prepare"):
        clock.now += 1
    clock.now += 2
    with meter.stage("teach"):
        clock.now += 4
        with meter.phase("compile"):
            clock.now += 8
            with meter.phase("step"):
                clock.now += 16
            clock.now += 32
        clock.now += 64
    clock.now += 128
    assert seconds_of(meter, LAUNCH) == {"startup": 7.0, "prepare": 1.0, "idle": 128.0}
    assert seconds_of(meter, "teach") == {"idle": 68.0, "compile": 40.0, "step": 16.0}
    assert sum(c.total_seconds for c in meter.charges()) == 5 + 255


def test_an_error_leaves_the_stage_and_its_phases(tmp_path, clock):
    meter = start(tmp_path / "meter.json", clock)
    with pytest.raises(KeyError), meter.stage("teach"), meter.phase("step"):
        clock.now += 1
        raise KeyError
    clock.now += 2
    with meter.stage("label"):
        clock.now += 4
    assert seconds_of(meter, LAUNCH) == {"idle": 2.0}
    assert seconds_of(meter, "teach") == {"step": 1.0}
    assert seconds_of(meter, "label") == {"idle": 4.0}


def test_unknown_phases_and_nested_stages_are_refused(tmp_path, clock):
    meter = start(tmp_path / "meter.json", clock)
    with pytest.raises(ValueError, match=", ".join(PHASES)), meter.phase("sleep"):
        pass
    teach, label = meter.stage("teach"), meter.stage("label")
    with teach, pytest.raises(ValueError, match="inside stage 'teach'"), label:
        pass
    with pytest.raises(ValueError, match="'launch'"), meter.stage(LAUNCH):
        pass


def test_work_is_counted_for_the_current_stage(tmp_path, clock):
    meter = start(tmp_path / "meter.json", clock)
    with meter.stage("teach"):
        for _ in range(3):
            meter.count(examples=2, tokens=10, padding_tokens=1, flops=0.5)
    with meter.stage("label"):
        meter.count(tokens=7)
    counted = {c.stage: (c.examples, c.tokens, c.padding_tokens, c.flops) for c in meter.charges()}
    assert counted["teach"] == (6, 30, 3, 1.5)
    assert counted["label"] == (0, 7, 0, 0.0)


def test_all_devices_held_are_paid_from_the_start_of_the_process(tmp_path, clock):
    meter = start(tmp_path / "meter.json", clock, age=10.0)
    with pytest.raises(ValueError, match="hold"):
        meter.spent_usd()
    meter.hold("NVIDIA H200", 4, PRICE)
    with meter.stage("teach"):
        clock.now += 90
    assert meter.spent_usd() == pytest.approx(0.4)
    assert meter.spent_usd(billed_usd=2.0) == pytest.approx(2.4)


def test_a_process_holds_one_set_of_devices(tmp_path, clock):
    meter = start(tmp_path / "meter.json", clock)
    meter.hold("cpu", 1, PRICE)
    meter.hold("cpu", 1, PRICE)
    with pytest.raises(ValueError, match="one set of devices"):
        meter.hold("cpu", 2, PRICE)
    with pytest.raises(ValueError, match="at least one device"):
        Holding("cpu", 0, PRICE)


def test_a_restart_adds_up_and_is_counted(tmp_path, clock):
    path = tmp_path / "meter.json"
    for _ in range(3):
        meter = start(path, clock, age=2.0)
        meter.hold("cpu", 1, PRICE)
        with meter.stage("teach"):
            clock.now += 10
            meter.count(tokens=5)
            meter.persist()
            clock.now += 1  # never written: the process dies here
        clock.now += 1000  # nobody rents anything meanwhile
    meter = start(path, clock)
    meter.hold("cpu", 1, PRICE)
    charges = {c.stage: c for c in meter.charges()}
    assert charges["teach"].seconds == {"idle": 30.0}
    assert charges["teach"].tokens == 15
    assert charges["teach"].restarts == 2
    assert charges[LAUNCH].seconds == {"startup": 6.0}
    assert charges[LAUNCH].restarts == 3
    assert {c.holding for c in charges.values()} == {Holding("cpu", 1, PRICE)}


def test_stages_entered_twice_in_one_process_were_not_restarted(tmp_path, clock):
    meter = start(tmp_path / "meter.json", clock)
    for _ in range(2):
        with meter.stage("evaluate"):
            clock.now += 1
    assert [c.restarts for c in meter.charges()] == [0, 0]


def test_a_closed_stage_leaves_and_later_time_is_billed_apart(tmp_path, clock):
    meter = start(tmp_path / "meter.json", clock)
    meter.hold("cpu", 1, PRICE)
    with meter.stage("teach"):
        clock.now += 5
        with pytest.raises(ValueError, match="still running"):
            meter.close_stage("teach")
    (charge,) = meter.close_stage("teach")
    assert charge.row_id.startswith("teach-")
    assert meter.close_stage("teach") == ()
    assert meter.spent_usd() == pytest.approx(0.005)  # until it is settled, it counts
    meter.settle(charge.row_id)
    assert meter.spent_usd() == 0
    with meter.stage("teach"):
        clock.now += 7
    (later,) = meter.close_stage("teach")
    assert later.seconds == {"idle": 7.0}
    assert later.row_id != charge.row_id


@pytest.mark.parametrize("appended", [True, False])
def test_a_crash_while_billing_neither_loses_nor_doubles(tmp_path, clock, appended):
    path = tmp_path / "meter.json"
    meter = start(path, clock)
    meter.hold("cpu", 1, PRICE)
    with meter.stage("teach"):
        clock.now += 5
    (charge,) = meter.close_stage("teach")
    # The process dies here; the row got to the ledger, or it did not.
    again = start(path, clock, is_billed=lambda row_id: appended and row_id == charge.row_id)
    again.hold("cpu", 1, PRICE)
    unbilled = again.close_stage("teach")
    assert [c.seconds for c in unbilled] == ([] if appended else [{"idle": 5.0}])
    assert charge.row_id not in [c.row_id for c in unbilled]


def test_a_finished_run_started_again_was_not_restarted(tmp_path, clock):
    path = tmp_path / "meter.json"
    meter = start(path, clock, age=3.0)
    meter.hold("cpu", 1, PRICE)
    with meter.stage("teach"):
        clock.now += 5
    for stage in ("teach", LAUNCH):
        for charge in meter.close_stage(stage):
            meter.settle(charge.row_id)
    clock.now += 1
    meter.close()
    again = start(path, clock, age=4.0)
    again.hold("cpu", 1, PRICE)
    (charge,) = again.charges()
    assert charge.seconds == {"idle": 1.0, "startup": 4.0}
    assert charge.restarts == 0


def test_other_hardware_after_a_restart_is_billed_apart(tmp_path, clock):
    path = tmp_path / "meter.json"
    dearer = user_price(7.2)
    for devices, price in ((8, PRICE), (2, dearer)):
        meter = start(path, clock)
        meter.hold("NVIDIA H200", devices, price)
        with meter.stage("teach"):
            clock.now += 100
            meter.persist()
    assert meter.spent_usd() == pytest.approx(0.8 + 0.4)
    charges = meter.close_stage("teach")
    assert [c.holding for c in charges] == [
        Holding("NVIDIA H200", 8, PRICE),
        Holding("NVIDIA H200", 2, dearer),
    ]
    assert [c.restarts for c in charges] == [0, 1]
    assert len({c.row_id for c in charges}) == 2


def test_time_of_a_process_that_never_knew_its_devices_is_the_next_ones(tmp_path, clock):
    path = tmp_path / "meter.json"
    start(path, clock, age=3.0).persist()
    meter = start(path, clock, age=4.0)
    meter.hold("cpu", 2, PRICE)
    (charge,) = meter.close_stage(LAUNCH)
    assert charge.seconds == {"startup": 7.0}
    assert charge.restarts == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 9, "charges": []}', '{"version": 1, "charges": [{"x": 1}]}']
)
def test_a_file_no_meter_wrote_is_refused_and_kept(tmp_path, clock, text):
    path = tmp_path / "meter.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="Only a meter writes this file"):
        start(path, clock)
    assert path.read_text() == text


def test_a_write_that_fails_leaves_the_old_file(tmp_path, clock, monkeypatch):
    path = tmp_path / "meter.json"
    meter = start(path, clock, age=1.0)
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    clock.now += 5
    with pytest.raises(OSError, match="No space"):
        meter.persist()
    assert path.read_text() == before


def test_a_bucket_is_refused(clock):
    with pytest.raises(ValueError, match="local path"):
        start("gs://bucket/run/meter.json", clock)


def test_merged_charges_add_up():
    one = Charge("teach", None, seconds={"step": 1.0}, examples=1, tokens=2, restarts=1)
    one.add(Charge("teach", None, seconds={"step": 2.0, "idle": 4.0}, tokens=3, flops=5.0))
    assert one.seconds == {"step": 3.0, "idle": 4.0}
    assert (one.examples, one.tokens, one.flops, one.restarts) == (1, 5, 5.0, 1)


CHILD = """
import sys, time
from dora_jax.cost.meter import Meter

with Meter(sys.argv[1]) as meter, meter.stage("teach"), meter.phase("step"):
    while True:
        meter.count(tokens=1)
        time.sleep(0.01)
"""


def test_kill_9_loses_less_than_five_seconds(tmp_path):
    path = tmp_path / "meter.json"
    born = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)])
    try:
        written = [born]  # when the file was seen to change: the gaps are what a kill can lose
        for count in (1, 2):
            tokens = tokens_in(path)
            while tokens_in(path) == tokens:
                assert child.poll() is None, "the child ended by itself"
                assert time.monotonic() < written[-1] + 5, f"write {count} came too late"
                time.sleep(0.01)
            written.append(time.monotonic())
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    lived = time.monotonic() - born
    charges = json.loads(path.read_text())["charges"]
    kept = sum(sum(charge["seconds"].values()) for charge in charges)
    assert lived - 5 <= kept <= lived + 0.05  # the system's clock for processes ticks in 0.01 s
    # The interpreter's own start lies before the first line of any module, and is billed.
    assert next(c for c in charges if c["stage"] == LAUNCH)["seconds"]["startup"] > 0.01

    clock = Clock()
    meter = start(path, clock)
    with meter.stage("teach"):
        clock.now += 10
    teach = next(c for c in meter.charges() if c.stage == "teach")
    assert teach.restarts == 1
    assert teach.seconds["step"] > 1
    assert sum(c.total_seconds for c in meter.charges()) == pytest.approx(kept + 10)


def tokens_in(path):
    if not path.exists():
        return 0
    return sum(charge["tokens"] for charge in json.loads(path.read_text())["charges"])


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux's /proc")
def test_the_system_tells_the_age_of_the_process(tmp_path):
    before = process_age_seconds()
    with Meter(tmp_path / "meter.json") as meter:
        assert meter.starts_with_process
        startup = seconds_of(meter, LAUNCH)["startup"]
    after = process_age_seconds()
    assert before and after and 0 < before <= startup <= after + 0.05


def test_without_proc_time_runs_from_the_import_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("dora_jax.cost.meter.process_age_seconds", lambda: None)
    monkeypatch.setattr("dora_jax.cost.meter._IMPORTED_AT", time.monotonic() - 50)
    with Meter(tmp_path / "meter.json") as meter:
        assert not meter.starts_with_process
        assert 50 <= seconds_of(meter, LAUNCH)["startup"] < 60


def test_a_full_disk_does_not_stop_the_writing_thread(tmp_path, clock, monkeypatch, caplog):
    path = tmp_path / "meter.json"
    meter = start(path, clock)
    tries = []

    def full():
        tries.append(1)
        if len(tries) == 3:
            meter._stopped.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(meter, "persist", full)
    meter._persist_until_stopped(0.001)
    assert len(tries) == 3
    assert len(caplog.records) == 1 and "No space left" in caplog.text
