"""What the devices of a compiled program send each other, read from its text.

XLA's own cost analysis counts the body of a loop once. Here each collective operation counts as
often as the loops around it turn.
"""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|async_execution_thread_computation)=%?([\w.\-]+)"
    r"|\bbranch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)"?\}')
# TPU programs do not carry it: a condition compares one number of the loop with a constant, and
# the body adds another to it (products taken while their operands go round add two).
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_ELEMENT = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* get-tuple-element\(.*?\), index=(\d+)")
_SUM = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* add\(%([\w.\-]+), %([\w.\-]+)\)")
_RESULT = re.compile(r"^  ROOT .* tuple\(([^()]*)\)")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")


class _Collective(NamedTuple):
    kind: str
    channel: str  # pieces of one operation, spread over other work, share it; "": has none
    bytes: float


class _Counters(NamedTuple):
    """The whole numbers of one computation, by which its loop may count."""

    constants: dict[str, int]  # by name
    elements: dict[str, int]  # of the tuple that it is given: by name, which one
    sums: dict[str, tuple[str, str]]
    results: list[str]  # names

    @property
    def limit(self) -> int | None:
        """Of a condition: what it compares with."""
        return max(self.constants.values(), default=None)

    def step(self, condition: _Counters) -> int:
        """Of a body: what it adds to the number that the condition reads; 1 if that is not told."""
        for place in condition.elements.values():
            result = self.results[place] if place < len(self.results) else ""
            one, other = self.sums.get(result, ("", ""))
            if self.elements.get(one) == place and self.constants.get(other):
                return self.constants[other]
        return 1


class _Call(NamedTuple):
    computation: str
    times: int


def bytes_sent(text: str, unknown_trips: int) -> dict[str, float]:
    """Bytes that one device sends in one run of a program, by kind of collective.

    With n devices in a group and an array of A bytes on each: rings send A · (n − 1)/n of what
    is gathered, twice that of what is summed to all, A · (n − 1) of what is summed to a share
    of A each, and a permutation A.

    Args:
      text: `compiled.as_text()`.
      unknown_trips: how often a loop turns of which the compiler does not know.
    """
    sent, calls, entry = _computations(text, unknown_trips)
    found: dict[tuple[str, str], float] = {}

    def visit(computation: str, times: int) -> None:
        for number, one in enumerate(sent[computation]):
            key = one.kind, one.channel or f"{computation} {number}"
            found[key] = max(found.get(key, 0.0), times * one.bytes)
        for call in calls[computation]:
            visit(call.computation, times * call.times)

    visit(entry, 1)
    totals: dict[str, float] = collections.defaultdict(float)
    for (kind, _), amount in found.items():
        totals[kind] += amount
    return dict(totals)


def _computations(
    text: str, unknown_trips: int
) -> tuple[dict[str, list[_Collective]], dict[str, list[_Call]], str]:
    """What each computation sends itself, what it calls how often, and which is the first."""
    sent: dict[str, list[_Collective]] = collections.defaultdict(list)
    calls: dict[str, list[_Call]] = collections.defaultdict(list)
    counters = _counters(text)
    entry = here = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            here = opened[2]
            entry = here if opened[1] else entry
            continue
        if found := _OPERATION.search(line):
            channel = _CHANNEL.search(line)
            amount = _sent(found[2], found[1], bool(found[3]), _group_size(line))
            sent[here].append(_Collective(found[2], channel[1] if channel else "", amount))
        times = 1
        if " while(" in line:
            known, loop = _TRIPS.search(line), _LOOP.search(line)
            counted = _turns(counters[loop[1]], counters[loop[2]]) if loop else None
            times = int(known[1]) if known else counted or unknown_trips
        for one, several in _CALLED.findall(line):
            names = [one] if one else [name.strip().lstrip("%") for name in several.split(",")]
            calls[here] += [_Call(name, times) for name in names]
    return sent, calls, entry


def _counters(text: str) -> dict[str, _Counters]:
    """Of every computation."""
    counters: dict[str, _Counters] = collections.defaultdict(lambda: _Counters({}, {}, {}, []))
    here = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            here = opened[2]
        elif found := _CONSTANT.search(line):
            counters[here].constants[found[1]] = int(found[2])
        elif found := _ELEMENT.search(line):
            counters[here].elements[found[1]] = int(found[2])
        elif found := _SUM.search(line):
            counters[here].sums[found[1]] = found[2], found[3]
        elif found := _RESULT.match(line):
            names = [name.split()[-1].lstrip("%") for name in found[1].split(",")]
            counters[here].results.extend(names)
    return counters


def _turns(condition: _Counters, body: _Counters) -> int | None:
    """How often a loop turns that counts from 0; None where it cannot be told."""
    limit = condition.limit
    return limit and math.ceil(limit / body.step(condition))


def _group_size(line: str) -> int:
    if listed := _GROUPS.search(line):
        return len(listed[1].split(","))
    if mesh := _MESH_GROUPS.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    if iota := _IOTA_GROUPS.search(line):
        return int(iota[2])
    return 2  # a permutation, or all there are: nearly everything is sent


def _sent(kind: str, result: str, started: bool, group: int) -> float:
    arrays = [_size(dtype, shape) for dtype, shape in _ARRAY.findall(result)]
    # A started operation returns its operands beside its results.
    amount = max(arrays, default=0.0) if started else sum(arrays)
    share = (group - 1) / group
    return {
        "all-gather": amount * share,
        "all-reduce": 2 * amount * share,
        "reduce-scatter": amount * (group - 1),
        "all-to-all": amount * share,
        "collective-permute": amount,
    }[kind]


def _size(dtype: str, shape: str) -> float:
    return _BYTES.get(dtype, 0) * math.prod(int(size) for size in shape.split(",") if size)
