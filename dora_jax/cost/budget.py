"""A cap in dollars: how near a run is, and what is kept back to end it well.

A run asks before each update whether it can still pay for that update and for the ending: a
last validation, a checkpoint, the evaluation. Each of these costs what it last took, measured;
before it was first measured, a share of the cap.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

# Of the cap, for each part of the ending that has not been measured yet.
UNMEASURED_SHARE = 0.05
# Of the cap, for what happens between the parts: files are closed, stages billed and begun.
SLACK_SHARE = 0.02
# Of the cap, for the whole ending while none of it is measured: what cannot be planned with.
KEPT_BACK_SHARE = 2 * UNMEASURED_SHARE + SLACK_SHARE
UPDATE, VALIDATE, SAVE = "update", "validate", "save"


class BudgetReached(Exception):
    """The money is spent, but for what the ending needs.

    Attributes:
      last_step: update after which training was cut short; None outside of training.
      best_step: the chosen update so far.
    """

    def __init__(
        self, reason: str, last_step: int | None = None, best_step: int | None = None
    ) -> None:
        super().__init__(reason)
        self.last_step, self.best_step = last_step, best_step


class Budget:
    """What may still be spent.

    Args:
      cap_usd: the most that may be spent; infinite for no cap.
      spent_usd: dollars so far, this second included.
    """

    def __init__(self, cap_usd: float, spent_usd: Callable[[], float]) -> None:
        self.cap_usd = cap_usd
        self._spent_usd = spent_usd
        self._costs: dict[str, float] = {}
        self._last_batch: float | None = None

    @property
    def is_capped(self) -> bool:
        return math.isfinite(self.cap_usd)

    def __str__(self) -> str:
        return f"the budget of ${self.cap_usd:,.2f}"

    @contextlib.contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """What happens inside is a part of this kind: the next one will cost as much.

        An update may get cheaper, once it is compiled; of the others the dearest counts.
        """
        if not self.is_capped:
            yield
            return
        before = self._spent_usd()
        yield
        cost = self._spent_usd() - before
        if part != UPDATE:
            cost = max(cost, self._costs.get(part, 0.0))
        self._costs[part] = cost

    def allows_update(self, evaluations: float) -> bool:
        """Whether another update leaves enough for the ending.

        Args:
          evaluations: how much of the final evaluation is one validation's work.
        """
        if not self.is_capped:
            return True
        unmeasured = UNMEASURED_SHARE * self.cap_usd
        validation = self._costs.get(VALIDATE)
        scoring = unmeasured if validation is None else (1.0 + evaluations) * validation
        # To save now, and to read again what is evaluated.
        ending = 2 * self._costs.get(SAVE, unmeasured / 2) + scoring
        ending += self._costs.get(UPDATE, 0.0) + SLACK_SHARE * self.cap_usd
        return self._spent_usd() + ending <= self.cap_usd

    def begin_stage(self) -> None:
        """Forgets what parts and batches cost: those of another network follow."""
        self._costs.clear()
        self._last_batch = None

    def allows_batch(self) -> bool:
        """Whether another batch may follow, called after each; it costs what the last one did."""
        if not self.is_capped:
            return True
        now = self._spent_usd()
        cost = 0.0 if self._last_batch is None else now - self._last_batch
        self._last_batch = now
        return now + cost <= self.cap_usd

    def is_spent(self) -> bool:
        """Whether nothing is left."""
        return self.is_capped and self._spent_usd() >= self.cap_usd
