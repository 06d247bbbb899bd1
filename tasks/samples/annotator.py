"""A simulated annotator: WLP's bundled sample with stated errors, behind a chat server.

It stands where a language model's server would, so that buying labels, and the runs on them, can be
rehearsed without a server, a key or money. It judges nothing: it knows the gold entities of every
text of the sample, and drops or mistypes each with a stated probability, independently of all
others. A language model errs in other ways, so that results on these labels show how the program
works, and nothing about any model. It answers to the model name "simulated" alone, which every
label and receipt then carries.

    python -m dora_jax.tasks.samples.annotator --port=8765 --error_share=0.15
    python launch/annotate.py --task=wlp --model=simulated --base_url=http://127.0.0.1:8765/v1 …
"""

from __future__ import annotations

import argparse
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from dora_jax.metrics.spans import parse_entities
from dora_jax.tasks.samples.generator import choose_other
from dora_jax.tasks.samples.wlp import SPLITS, make_rows
from dora_jax.tasks.wlp import ENTITY_TYPES

MODEL = "simulated"
HOST = "127.0.0.1"  # for this machine alone
CHARACTERS_A_TOKEN = 4  # what it bills by
MAX_REQUEST_BYTES = 10_000_000


class Refused(Exception):
    """A request that it does not answer: the HTTP status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def gold_targets() -> dict[str, str]:
    """The gold target of every text of the sample, the unlabelled ones too."""
    # The splits are drawn one after the other, so that one large split has the same rows.
    rows = make_rows(splits={"all": sum(SPLITS.values())})["all"]
    return {row["source"]: row["target"] for row in rows}


def expected_f1(error_share: float) -> float:
    """Micro-F1 of the simulated labels, in percent.

    With share e, half of it dropped: recall 1 − e, precision (1 − e) / (1 − e/2).
    """
    return 100.0 * 2.0 * (1.0 - error_share) / (2.0 - error_share / 2.0)


def with_errors(source: str, target: str, error_share: float, seed: int) -> list[dict[str, str]]:
    """The gold entities of a text with its errors, the same ones whenever it is asked.

    Args:
        source: the text.
        target: its gold entities, `entity [Type] entity [Type]`.
        error_share: of the entities: half is dropped, half gets another type.
        seed: of the draws.
    """
    drawn, listed = random.Random(f"{seed}\n{source}"), []
    for text, kind in parse_entities(target, ENTITY_TYPES):
        place = drawn.random()
        if place < error_share / 2:
            continue
        if place < error_share:
            kind = choose_other(ENTITY_TYPES, kind, drawn)
        listed.append({"text": text, "type": kind})
    return listed


class SimulatedAnnotator:
    """The server; `port` 0 takes a free one. Use as a context manager."""

    def __init__(self, port: int, error_share: float, seed: int) -> None:
        if not 0.0 <= error_share <= 1.0:
            raise ValueError(f"--error_share={error_share}; it must lie between 0 and 1.")
        self._gold, self._error_share, self._seed = gold_targets(), error_share, seed
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                try:
                    status, body = 200, answer(_read(self))
                except Refused as error:
                    status, body = error.status, {"error": {"message": str(error)}}
                _send(self, status, body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        try:
            self._http = ThreadingHTTPServer((HOST, port), Handler)
        except OSError as error:
            raise ValueError(f"--port={port} cannot be used: {error.strerror}.") from error
        self._http.daemon_threads = True
        self.base_url = f"http://{HOST}:{self._http.server_port}/v1"

    def __enter__(self) -> SimulatedAnnotator:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def serve(self) -> None:
        """Answers until it is stopped."""
        self._http.serve_forever(0.05)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """A chat completion.

        Raises:
            Refused: another model, a stream, or a text that the sample does not have.
        """
        if request.get("model") != MODEL:
            raise Refused(404, f"this is a simulated annotator; the only model is {MODEL!r}")
        if request.get("stream"):
            raise Refused(400, "the simulated annotator does not stream")
        conversation = _conversation(request)
        if (target := self._gold.get(conversation.source)) is None:
            raise Refused(400, "the text is none of WLP's bundled sample")
        entities = with_errors(conversation.source, target, self._error_share, self._seed)
        text = json.dumps({"entities": entities}, ensure_ascii=False)
        usage = {"prompt_tokens": _tokens(conversation.text), "completion_tokens": _tokens(text)}
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


class _Conversation(NamedTuple):
    source: str  # asked about
    text: str  # all of it


def _conversation(request: dict[str, Any]) -> _Conversation:
    """Reads the messages of `annotators/prompts.py`: the text is a JSON value of the user's."""
    source, contents = None, []
    try:
        for message in request["messages"]:
            contents.append(message["content"])
            if message["role"] == "user" and message["content"].startswith('{"text"'):
                source = json.loads(message["content"])["text"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Refused(400, "the messages are not those of launch/annotate.py") from error
    if not isinstance(source, str):
        raise Refused(400, "no message of the user has a text to label")
    return _Conversation(source, "".join(contents))


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_A_TOKEN)


def _read(http: BaseHTTPRequestHandler) -> dict[str, Any]:
    try:
        length = int(http.headers.get("Content-Length", ""))
    except ValueError:
        length = -1
    if not 0 <= length <= MAX_REQUEST_BYTES:
        http.close_connection = True  # what was not read would be taken for the next request
        raise Refused(413, "the request has no length, or is too long")
    try:
        request = json.loads(http.rfile.read(length))
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the request is no JSON") from error
    if not isinstance(request, dict):
        raise Refused(400, "the request is no object")
    return request


def _send(http: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    http.send_response(status)
    http.send_header("Content-Type", "application/json")
    http.send_header("Content-Length", str(len(content)))
    http.end_headers()
    http.wfile.write(content)


def main() -> None:
    """The command line: serves until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m dora_jax.tasks.samples.annotator",
        description="A simulated annotator, which answers for WLP's bundled sample.",
    )
    parser.add_argument("--port", type=int, default=8765, help="(default: %(default)s)")
    parser.add_argument(
        "--error_share",
        type=float,
        default=0.15,
        help="of the entities, half dropped and half mistyped (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the errors (default: %(default)s)")
    flags = parser.parse_args()
    try:
        server = SimulatedAnnotator(flags.port, flags.error_share, flags.seed)
    except ValueError as error:
        parser.error(str(error))
    print(
        f"Simulated annotator at {server.base_url}, model {MODEL}: gold labels of WLP's bundled "
        f"sample, {flags.error_share:.0%} of the entities dropped or mistyped (micro-F1 "
        f"{expected_f1(flags.error_share):.1f} expected). No language model. Ctrl-C ends it.",
        flush=True,
    )
    try:
        server.serve()
    except KeyboardInterrupt:
        print("ended")


if __name__ == "__main__":
    main()
