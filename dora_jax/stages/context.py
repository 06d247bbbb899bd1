"""What every stage of a run shares: its directory, data, devices, meter and ledger."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Protocol

import jax
from jax.sharding import Mesh

from dora_jax.config import CostConfig, DataConfig, RunConfig, fingerprint, to_dict
from dora_jax.cost import ledger as ledgers
from dora_jax.cost.ledger import Ledger, RunFacts
from dora_jax.cost.meter import LAUNCH, Holding, Meter
from dora_jax.cost.prices import Price, PriceBook, user_price
from dora_jax.data.token_store import TokenStore
from dora_jax.metrics.scores import Scores
from dora_jax.parallel import hosts
from dora_jax.parallel.mesh import make_mesh
from dora_jax.stages import manifest
from dora_jax.stopping import Interrupted, StopRequest
from dora_jax.whole_files import write_json, write_whole

__all__ = ["Interrupted", "Report", "RunContext", "StopRequest", "Task"]

Report = Callable[[str], None]


class Task(Protocol):
    """What a run needs to know of a task; `dora_jax.tasks.task.TaskSpec` is one."""

    @property
    def name(self) -> str: ...

    @property
    def score(self) -> Callable[..., Scores]: ...


Prepare = Callable[[DataConfig, Path, Report], TokenStore]


@dataclasses.dataclass
class RunContext:
    """An open run directory. Use as a context manager: leaving it bills what is unbilled.

    Of many hosts the first one holds the lock and writes all records, the bill for every device
    included; meter and ledger of the others stand in a folder that is thrown away.
    """

    config: RunConfig
    task: Task
    directory: Path
    mesh: Mesh
    meter: Meter
    ledger: Ledger
    holding: Holding
    facts: RunFacts
    stop: StopRequest
    report: Report
    prepare: Prepare
    _resources: contextlib.ExitStack  # the directory's lock and the meter

    # Until when a run of this process was metered: the next one is billed from there, so that
    # no second of a process is paid twice. None: from the start of the process.
    _metered_until: ClassVar[float | None] = None

    @classmethod
    def open(
        cls,
        config: RunConfig,
        task: Task,
        *,
        prepare: Prepare,
        report: Report,
        stop: StopRequest,
    ) -> RunContext:
        """Opens (and makes) the run directory, and starts the meter.

        Raises:
          ValueError: the directory holds a run of other settings, cannot be written, is in use
            by another process, or is not the same one on all hosts.
        """
        directory = Path(config.model_dir)
        with contextlib.ExitStack() as opened:  # closes what is open if anything below fails

            def claim() -> None:
                opened.enter_context(_locked(directory))
                _refuse_another_run(directory, config)

            hosts.on_first(claim)
            _require_shared(directory)
            records = directory
            if not hosts.is_first():
                records = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            ledger = Ledger(records / "ledger.jsonl")
            meter = opened.enter_context(
                Meter(
                    records / "meter.json",
                    is_billed=ledger.has,
                    process_started=cls._metered_until,
                )
            )
            opened.callback(cls._end_metering)
            devices = jax.devices()
            device_kind = devices[0].device_kind
            price = _device_price(config, device_kind)
            holding = meter.hold(device_kind, len(devices), price)
            not_counted = ledgers.NOT_COUNTED if config.cost.uncounted_hours < 0 else ()
            facts = RunFacts(directory.name, config.scale, ledgers.code_version(), not_counted)
            if config.cost.uncounted_hours >= 0 and not ledger.has(ledgers.OUTSIDE):
                ledger.append(ledgers.outside_row(facts, holding, config.cost.uncounted_hours))
            return cls(
                config=config,
                task=task,
                directory=directory,
                mesh=make_mesh(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor, devices=devices),
                meter=meter,
                ledger=ledger,
                holding=holding,
                facts=facts,
                stop=stop,
                report=report,
                prepare=prepare,
                _resources=opened.pop_all(),
            )

    @classmethod
    def _end_metering(cls) -> None:
        cls._metered_until = time.monotonic()

    def __enter__(self) -> RunContext:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._resources:
            self.bill(LAUNCH, ledgers.SHARED)

    @contextlib.contextmanager
    def stage(self, name: str, strategy: str) -> Iterator[Path]:
        """The time inside is the stage's; on leaving it finished, its ledger row is written.

        A stage that is interrupted stays unbilled in the meter, and is billed as one when it
        ends. One found finished takes no time of its own: it has a row only if a crash came
        between its end and its bill.
        """
        self.stop.check()
        directory = self.directory / name
        if manifest.is_finished(directory):
            yield directory
        else:
            with self.meter.stage(name):
                yield directory
        self.bill(name, strategy)

    def bill(self, stage: str, strategy: str) -> None:
        ledgers.bill_stage(self.meter, self.ledger, stage, strategy, self.facts)

    def buy_labels(self, count: int) -> None:
        """Enters the human labels of this run into the ledger, once."""
        row = ledgers.labels_row(self.facts, self.task.name, count, self.label_price())
        if not self.ledger.has(row.row_id):
            self.ledger.append(row)

    def label_price(self) -> Price:
        price_usd = self.config.cost.price_usd_per_label
        if price_usd >= 0:
            return user_price(price_usd, unit="label")
        return PriceBook.load().label_price(self.task.name)

    def spent_usd(self) -> float:
        """Dollars of the run so far, this very second included."""
        return self.meter.spent_usd(self.ledger.totals().dollars)

    def seed(self, purpose: str) -> int:
        """A seed of its own for each use of randomness in the run, from the run's seed."""
        return int(fingerprint([self.config.seed, purpose])[:8], 16)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """The run directory, made where missing, for this process alone."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "w")
    except OSError as error:
        raise ValueError(
            f"The run directory {directory} cannot be written: {error}. Choose another "
            "MODEL_DIR, or free some space."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"Another process works in {directory}. Wait for it, or choose another MODEL_DIR."
            ) from error
        yield


def _require_shared(directory: Path) -> None:
    """Refuses a run directory that only some of the hosts see."""
    if hosts.count() == 1:
        return
    mark = directory / ".hosts"

    def write() -> str:
        text = uuid.uuid4().hex
        write_whole(mark, text)
        return text

    written = hosts.from_first(write)
    seen = mark.is_file() and mark.read_text(encoding="utf-8") == written
    if hosts.any_of(not seen):
        raise ValueError(
            f"MODEL_DIR {directory} is not the same folder on all {hosts.count()} hosts; here it "
            f"{'is' if seen else 'is not'} that of the first one. Put it on a file system that "
            "all of them share (NFS, Lustre, a mounted bucket)."
        )


def _device_price(config: RunConfig, device_kind: str) -> Price:
    price_usd = config.cost.price_usd_per_device_hour
    if price_usd >= 0:
        return user_price(price_usd)
    return PriceBook.load().device_price(device_kind)


def _refuse_another_run(directory: Path, config: RunConfig) -> None:
    """Compares with the configuration the directory was made with; prices may change."""
    comparable = dataclasses.replace(config, cost=CostConfig(), model_dir="")
    wanted = to_dict(comparable)
    path = directory / "config.json"
    if path.exists():
        manifest.refuse_difference(directory, manifest.read_json(path), wanted)
    else:
        write_json(path, wanted)
