"""What every stage of a run shares: its directory, data, devices, meter and ledger."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import math
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
from jax.sharding import Mesh

from dora_jax.config import (
    LLM_STRATEGIES,
    CostConfig,
    DataConfig,
    LlmConfig,
    MeshConfig,
    RunConfig,
    fingerprint,
    to_dict,
)
from dora_jax.cost import ledger as ledgers
from dora_jax.cost.budget import Budget, BudgetReached
from dora_jax.cost.ledger import Ledger, RunFacts
from dora_jax.cost.meter import LAUNCH, Holding, Meter
from dora_jax.cost.prices import Price
from dora_jax.cost.run_prices import device_price, device_price_notes, label_price
from dora_jax.data.token_store import TokenStore
from dora_jax.metrics.scores import Scores
from dora_jax.parallel import hosts
from dora_jax.parallel.mesh import make_mesh
from dora_jax.stages import manifest, shared, status
from dora_jax.stopping import Interrupted, StopRequest
from dora_jax.whole_files import write_json, write_whole

__all__ = ["Interrupted", "Report", "RunContext", "StopRequest", "Task"]

Report = Callable[[str], None]


class Task(Protocol):
    """What a run needs to know of a task; `dora_jax.tasks.task.TaskSpec` is one."""

    @property
    def name(self) -> str: ...

    @property
    def check_target(self) -> Callable[[str], str | None]: ...

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
    stopped_by: str = ""  # the budget, where that has ended the run
    _billed_usd: float = 0.0

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
                    is_billed=lambda row_id: _is_billed(directory, ledger, row_id),
                    process_started=cls._metered_until,
                )
            )
            opened.callback(cls._end_metering)
            devices = jax.devices()
            device_kind = devices[0].device_kind
            price = device_price(config.cost, device_kind, config.cost.spot)
            holding = meter.hold(device_kind, len(devices), price)
            not_counted = ledgers.NOT_COUNTED if config.cost.uncounted_hours < 0 else ()
            facts = RunFacts(directory.name, config.scale, ledgers.code_version(), not_counted)
            if config.cost.uncounted_hours >= 0 and not ledger.has(ledgers.OUTSIDE):
                ledger.append(ledgers.outside_row(facts, holding, config.cost.uncounted_hours))
            stopped_by = hosts.from_first(
                lambda: status.out_of_money(directory, config.cost.budget_usd)
            )
            if hosts.is_first():
                status.begun(directory)
            context = cls(
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
                stopped_by=stopped_by,
            )
        context._sum_up()
        today = datetime.datetime.now(datetime.UTC).date()
        for note in device_price_notes(config.cost, price, today):
            context.report(f"note: {note}")
        return context

    @classmethod
    def _end_metering(cls) -> None:
        cls._metered_until = time.monotonic()

    def __enter__(self) -> RunContext:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        with self._resources:
            try:
                self.bill(LAUNCH, ledgers.SHARED)
            finally:
                if hosts.is_first():
                    cap_usd = self.config.cost.budget_usd
                    status.ended(self.directory, error, self.stopped_by, cap_usd)

    @functools.cached_property
    def budget(self) -> Budget:
        """What the run may still spend."""
        cap_usd = self.config.cost.budget_usd
        return Budget(cap_usd if cap_usd >= 0 else math.inf, self.spent_usd)

    @contextlib.contextmanager
    def stage(
        self, name: str, strategy: str, settings: dict[str, Any] | None = None
    ) -> Iterator[Path]:
        """The time inside is the stage's; on leaving it finished, its ledger row is written.

        A stage that is interrupted stays unbilled in the meter, and is billed as one when it
        ends. One found finished takes no time of its own: it has a row only if a crash came
        between its end and its bill.

        Args:
          name: of the stage, and of its folder.
          strategy: whose cost it is.
          settings: all that decides its result, so that runs can share it; None for a stage of
            this run alone.

        Raises:
          BudgetReached: there is work to do, and no money for it.
        """
        self.stop.check()
        if settings is not None:
            shared.link(self.directory, self.config.shared_dir, name, settings)
        directory = self.directory / name
        if manifest.is_finished(directory):
            yield directory
        else:
            if hosts.any_of(self.budget.is_spent()):
                raise BudgetReached(f"{self.budget} is spent, before {name}")
            self.budget.begin_stage()
            with self.meter.stage(name), contextlib.ExitStack() as opened:
                if shared.is_shared(self.directory, name):
                    opened.enter_context(shared.held(directory, self.stop, self.report))
                yield directory
        self.bill(name, strategy)

    def check(self) -> None:
        """After a batch of a stage without checkpoints: ends the run where it must end.

        Raises:
          Interrupted: a stop was asked for.
          BudgetReached: the next batch cannot be paid.
        """
        self.stop.check()
        if self.budget.is_capped and hosts.any_of(not self.budget.allows_batch()):
            raise BudgetReached(f"{self.budget} is reached")

    def bill(self, stage: str, strategy: str) -> None:
        ledger = self.ledger
        if hosts.is_first() and shared.is_shared(self.directory, stage):
            ledger = Ledger(shared.receipt(self.directory, stage))
        ledgers.bill_stage(self.meter, ledger, stage, strategy, self.facts)
        self._sum_up()

    def buy_labels(self, count: int) -> None:
        """Enters the human labels of this run into the ledger, once.

        Raises:
          ValueError: they cost more than the budget allows.
        """
        row = ledgers.labels_row(self.facts, self.task.name, count, self.label_price())
        self.buy(row, "NUM_LABELS")

    def buy(self, row: ledgers.LedgerRow, lower: str) -> None:
        """Enters a purchase into the ledger, once.

        Args:
          row: what is bought.
          lower: the setting that would make it cheaper, for the message.

        Raises:
          ValueError: it costs more than the budget allows.
        """
        hosts.on_first(lambda: self._enter(row, lower))
        self._sum_up()

    def _enter(self, row: ledgers.LedgerRow, lower: str) -> None:
        if self.ledger.has(row.row_id):
            return
        left_usd = max(self.budget.cap_usd - self.spent_usd(), 0.0)
        if row.dollars > left_usd:
            share = left_usd / row.dollars
            raise ValueError(
                f"{row.examples:,} labels cost ${row.dollars:,.2f}, and of {self.budget} "
                f"${left_usd:,.2f} is left: enough for {share * row.examples:,.0f} labels and "
                f"nothing else. Raise BUDGET_USD, or lower {lower}."
            )
        self.ledger.append(row)

    def label_price(self) -> Price:
        return label_price(self.config.cost, self.task.name)

    def spent_usd(self) -> float:
        """Dollars of the run so far, this very second included."""
        return self.meter.spent_usd(self._billed_usd)

    def _sum_up(self) -> None:
        """Reads the receipts anew; they only change when something is billed."""
        paid = self.ledger.totals().dollars
        if hosts.is_first():
            paid += shared.paid_usd(self.directory, self.facts.run)
        self._billed_usd = paid

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


def _is_billed(directory: Path, ledger: Ledger, row_id: str) -> bool:
    """Whether a row is in the run's receipt, or in that of a stage it shares."""
    path = shared.receipt(directory, row_id.rpartition("-")[0])
    return ledger.has(row_id) or (path.is_file() and Ledger(path).has(row_id))


def _refuse_another_run(directory: Path, config: RunConfig) -> None:
    """Compares with the configuration the directory was made with.

    Prices, places and how devices divide the work may change.
    """
    on_llm = set(config.strategies) & set(LLM_STRATEGIES)
    free = {} if on_llm else {"llm": LlmConfig()}
    free |= {"cost": CostConfig(), "mesh": MeshConfig(), "model_dir": "", "shared_dir": ""}
    wanted = to_dict(dataclasses.replace(config, **free))
    path = directory / "config.json"
    if path.exists():
        found = {k: v for k, v in manifest.read_json(path).items() if k not in free}
        wanted = {name: value for name, value in wanted.items() if name not in free}
        manifest.refuse_difference(directory, found, wanted)
    else:
        write_json(path, wanted)
