"""Between a task's targets and the JSON that a language model answers with.

    classification  {"label": "REFUTES"}
    spans           {"entities": [{"text": "30 min", "type": "Time"}]}
    text            {"answer": "2008"}

An answer is data. It becomes a target by the task's own rules or it is refused with a reason;
nothing in it is carried out, and no part of it names a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dora_jax.metrics.classification import parse_class
from dora_jax.metrics.spans import parse_entities
from dora_jax.metrics.text import normalise

MAX_ANSWER_CHARACTERS = 20_000
_FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL)


class LabelledTask(Protocol):
    """What annotating needs to know of a task; `dora_jax.tasks.task.TaskSpec` is one."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def instruction(self) -> str: ...

    @property
    def check_target(self) -> Callable[[str], str | None]: ...


class UnusableAnswer(ValueError):
    """An answer that is no label of the task; the message says why, for a second try."""


def answer_schema(task: LabelledTask) -> dict[str, Any]:
    """The JSON schema of an answer, in the strict subset that structured output takes."""
    text = {"type": "string"}
    if task.kind == "classification":
        return _object(label={**text, "enum": list(task.labels)})
    if task.kind == "spans":
        entity = _object(text=text, type={**text, "enum": list(task.labels)})
        return _object(entities={"type": "array", "items": entity})
    return _object(answer=text)


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def write_answer(task: LabelledTask, target: str) -> str:
    """The answer that stands for a gold target: what a few-shot example shows."""
    if task.kind == "classification":
        content: dict[str, Any] = {"label": target}
    elif task.kind == "spans":
        pairs = parse_entities(target, task.labels)
        content = {"entities": [{"text": text, "type": kind} for text, kind in pairs]}
    else:
        content = {"answer": target}
    return json.dumps(content, ensure_ascii=False)


def read_answer(task: LabelledTask, source: str, answer: str) -> str:
    """The target that an answer stands for.

    Beside JSON, bare or in a code fence, the task's own form of a class or of entities is taken.

    Args:
        task: whose rules hold.
        source: the text that was asked about; every entity must stand in it.
        answer: what the model wrote.

    Raises:
        UnusableAnswer: it is no label of this text.
    """
    if len(answer) > MAX_ANSWER_CHARACTERS:
        raise UnusableAnswer(f"the answer has more than {MAX_ANSWER_CHARACTERS:,} characters")
    content = _json_object(answer)
    if content is not None:
        target = _target_of(task, source, content)
    elif task.kind == "classification":
        target = parse_class(answer, task.labels) or ""
    elif task.kind == "spans" and parse_entities(answer, task.labels):
        target = " ".join(answer.split())
        _require_in_source(source, [text for text, _ in parse_entities(target, task.labels)])
    else:
        target = ""
    if not target and content is None:
        raise UnusableAnswer("the answer is not the JSON object that was asked for")
    try:
        target.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableAnswer("the answer holds half a surrogate pair") from error
    if complaint := task.check_target(target):
        raise UnusableAnswer(complaint)
    return target


def _json_object(answer: str) -> dict[str, Any] | None:
    fenced = _FENCED.fullmatch(answer.strip())
    try:
        content = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _target_of(task: LabelledTask, source: str, content: dict[str, Any]) -> str:
    if task.kind == "classification":
        label = parse_class(_text(content, "label"), task.labels)
        if label is None:
            raise UnusableAnswer(f"the label must be one of {', '.join(task.labels)}")
        return label
    if task.kind == "spans":
        return _spans_target(task, source, content)
    return " ".join(_text(content, "answer").split())


def _text(content: dict[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str):
        raise UnusableAnswer(f"{name!r} must be there, and a text")
    return value


def _spans_target(task: LabelledTask, source: str, content: dict[str, Any]) -> str:
    listed = content.get("entities")
    if not isinstance(listed, list) or not all(isinstance(entity, dict) for entity in listed):
        raise UnusableAnswer("'entities' must be a list of objects with 'text' and 'type'")
    pairs = []
    for entity in listed:
        text, kind = " ".join(_text(entity, "text").split()), _text(entity, "type")
        if kind not in task.labels:
            raise UnusableAnswer(f"the type {kind[:40]!r} is none of {', '.join(task.labels)}")
        pairs.append((text, kind))
    _require_in_source(source, [text for text, _ in pairs])
    pairs = _in_reading_order(source, pairs)
    target = write_spans(pairs)
    if parse_entities(target, task.labels) != [(normalise(text), kind) for text, kind in pairs]:
        raise UnusableAnswer("an entity's text holds a tag in brackets")
    return target


def write_spans(pairs: Sequence[tuple[str, str]]) -> str:
    """Entities in a span task's text form: `entity [Type] entity [Type]`."""
    return " ".join(f"{text} [{kind}]" for text, kind in pairs)


def _require_in_source(source: str, texts: Sequence[str]) -> None:
    plain = normalise(source)
    for text in texts:
        if not text or normalise(text) not in plain:
            raise UnusableAnswer(
                f"the entity {text[:80]!r} does not stand in the text; copy it letter by letter"
            )


def _in_reading_order(source: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Repeated texts take their occurrences one after the other, as human labels list them."""
    plain, taken = normalise(source), {}
    places = []
    for text, _ in pairs:
        wanted = normalise(text)
        place = plain.find(wanted, taken.get(wanted, 0))
        taken[wanted] = place + 1 if place >= 0 else len(plain)
        places.append(place if place >= 0 else len(plain))
    return [pairs[i] for i in sorted(range(len(pairs)), key=lambda i: places[i])]
