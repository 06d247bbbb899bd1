"""Language models that labelled: what their labels cost and how often they are wrong, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dora_jax.planning.dollars import price_text


@dataclasses.dataclass(frozen=True)
class Audit:
    """A language model's labels of texts that people have labelled too.

    Attributes:
      rows: texts audited.
      set_aside: of these, texts without a usable answer, which count as wrong.
      metric: that compares both.
      value, interval: of the metric, in percent.
      usd: what the audit itself cost; no model is charged for it.
    """

    rows: int
    set_aside: int
    metric: str
    value: float
    interval: tuple[float, float]
    usd: float

    @property
    def error_rate(self) -> float:
        """In percent."""
        return 100.0 - self.value


@dataclasses.dataclass(frozen=True)
class Annotator:
    """A language model whose labels runs learned from.

    Attributes:
      model: its name; "" where nothing says.
      labels: the most that a run used.
      usd_per_label: as paid.
      audit: None where its labels were never compared with people's.
    """

    model: str
    labels: int
    usd_per_label: float
    audit: Audit | None


def audit_of(plain: Any) -> Audit | None:
    """An audit as a receipt has it; None where there is none or it cannot be read."""
    if not isinstance(plain, Mapping):
        return None
    try:
        low, high = plain["interval"]
        return Audit(
            rows=int(plain["rows"]),
            set_aside=int(plain["set_aside"]),
            metric=str(plain["metric"]),
            value=float(plain["value"]),
            interval=(float(low), float(high)),
            usd=float(plain["usd"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def annotator_text(annotator: Annotator) -> str:
    """Price and measured error rate in a sentence or two."""
    model, price = annotator.model or "a language model", price_text(annotator.usd_per_label)
    text = f"{model}: ${price} a label, up to {annotator.labels:,} labels used."
    audit = annotator.audit
    if audit is None:
        return (
            f"{text} Not audited: how often its labels are wrong is unknown; "
            "launch/annotate.py --audit=100 measures it."
        )
    low, high = audit.interval
    aside = f", {audit.set_aside:,} of them without a usable answer" * (audit.set_aside > 0)
    return (
        f"{text} Error rate {audit.error_rate:.1f} % ({100 - high:.1f}–{100 - low:.1f} %): "
        f"{audit.metric} {audit.value:.1f} against people's labels of {audit.rows:,} texts{aside}."
    )
