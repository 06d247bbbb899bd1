"""What was measured, or is assumed, where arithmetic alone does not tell: one dated file."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple


class Calibrations(NamedTuple):
    """The sections of `calibrations.json`; every entry has its source and date there."""

    date: str
    efficiency: dict[str, Any]  # by platform: share of the roofline that is reached
    seconds: dict[str, Any]  # by platform: start, prepare, a compiled program, a stage; disk
    cpu: dict[str, Any]  # operations and bytes per second of 2 cores
    data: dict[str, Any]
    spot: dict[str, Any]


@functools.cache
def load() -> Calibrations:
    """The file beside this module."""
    content = json.loads(Path(__file__).with_name("calibrations.json").read_text("utf-8"))
    return Calibrations(**{name: content[name] for name in Calibrations._fields})
