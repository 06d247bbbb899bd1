"""One call of an OpenAI-compatible chat endpoint, and what can go wrong with it.

The `openai` package sends the request; it verifies TLS certificates, and here it neither retries
nor follows redirects. Bodies are read up to a limit and taken apart here, so that a reply of any
size or form ends in a `Reply` or in one of three errors.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dora_jax.annotators.prompts import Message

NO_KEY = "none"  # what servers without keys are sent
FINISH_REASONS = ("stop", "length", "content_filter", "refusal")
_SHORTEST_KEY = 8  # a shorter word is no secret, and may stand in any text
_RETRIED = (408, 409, 425, 429)
_OF_THIS_TEXT = (400, 413, 422)
_SHOWN = 300


class Usage(NamedTuple):
    """Tokens of a call, as the server counted them."""

    prompt_tokens: int
    completion_tokens: int


class Reply(NamedTuple):
    """A model's answer."""

    text: str
    finish_reason: str
    usage: Usage | None  # None: the server did not say


class TryAgain(Exception):
    """A call that failed for the moment.

    Attributes:
        after_seconds: how long the server asks to wait.
        maybe_billed: the request arrived and its answer was lost on the way, or may have been.
        reached: False where there was no connection at all.
    """

    def __init__(
        self,
        what: str,
        after_seconds: float = 0.0,
        maybe_billed: bool = False,
        reached: bool = True,
    ) -> None:
        super().__init__(what)
        self.after_seconds = after_seconds
        self.maybe_billed = maybe_billed
        self.reached = reached


class TextRefused(Exception):
    """The server will not answer this request, whenever it is asked."""


class AnnotatorRefused(ValueError):
    """The server will answer no request: its key, model or address is wrong, or money is out."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A chat endpoint. Its representation holds no key.

    Attributes:
        model: as the server names it.
        base_url: up to the version: "https://api.openai.com/v1".
        api_key: sent with every request; "" for servers without keys.
        stream: have answers sent piece by piece, which keeps slow ones alive on the way.
        timeout_seconds: of a call in all.
        max_answer_bytes: of a body; what is longer is given up.
    """

    model: str
    base_url: str
    api_key: str = dataclasses.field(default="", repr=False)
    stream: bool = False
    timeout_seconds: float = 120.0
    max_answer_bytes: int = 2_000_000

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                "--base_url is no address of a server; expected https://HOST/v1, as "
                "https://api.openai.com/v1."
            )
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "--base_url holds a user, a password or a query; give the key in the environment "
                "and the address alone."
            )
        if parts.scheme == "http" and not _is_local(parts.hostname):
            raise ValueError(
                f"--base_url={self.base_url} is not encrypted: texts and key could be read on the "
                "way. Use https, or a tunnel to this machine (http://localhost:PORT/v1)."
            )

    def without_key(self, text: str) -> str:
        """A text of the server's, in which its key can stand no more."""
        if len(self.api_key) < _SHORTEST_KEY:
            return text
        return text.replace(self.api_key, "[key]")


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ChatClient:
    """Calls an endpoint. Use as an asynchronous context manager."""

    def __init__(self, endpoint: Endpoint, connections: int = 8) -> None:
        # Imported here because they take a second, and only this needs them.
        import httpx2
        import openai

        self._openai, self._httpx2 = openai, httpx2
        self.endpoint = endpoint
        http_client = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,  # texts go where the user said and nowhere else
            timeout=endpoint.timeout_seconds,
            limits=httpx2.Limits(max_connections=connections),
            event_hooks={"response": [self._limit]},
        )
        self._client = openai.AsyncOpenAI(
            api_key=endpoint.api_key or NO_KEY,
            base_url=endpoint.base_url,
            max_retries=0,
            http_client=http_client,
            default_headers={"Accept-Encoding": "identity"},  # a small body shall not unpack to GBs
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.close()

    async def ask(self, messages: Sequence[Message], parameters: dict[str, Any]) -> Reply:
        """One call.

        Args:
            messages: the conversation.
            parameters: all other fields of the request's body; None leaves a field out.

        Raises:
            TryAgain: a limit of the server's, a fault of it or of the network.
            TextRefused: the request is refused for what is in it.
            AnnotatorRefused: any request would be.
        """
        openai, body = self._openai, {k: v for k, v in parameters.items() if v is not None}
        if self.endpoint.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            async with asyncio.timeout(self.endpoint.timeout_seconds):
                return await self._read(messages, body)
        except (TimeoutError, openai.APITimeoutError) as error:
            seconds = self.endpoint.timeout_seconds
            raise TryAgain(f"no whole answer in {seconds:g} s", maybe_billed=True) from error
        except openai.APIStatusError as error:
            raise self._refusal(error) from None  # the request it quotes has the key
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, TryAgain):
                raise cause from None
            unsent = isinstance(cause, self._httpx2.ConnectError)
            what = f"no connection ({type(cause).__name__}: {_on_one_line(str(cause))})"
            raise TryAgain(what, maybe_billed=not unsent, reached=not unsent) from None
        except self._httpx2.HTTPError as error:
            what = f"the answer broke off ({type(error).__name__})"
            raise TryAgain(what, maybe_billed=True) from None

    async def _read(self, messages: Sequence[Message], body: dict[str, Any]) -> Reply:
        creating = self._client.chat.completions.with_streaming_response.create(
            model=self.endpoint.model,
            messages=list(messages),  # type: ignore[arg-type]  # plain dicts are what is sent
            extra_body=body,
        )
        async with creating as response:
            content = b"".join([piece async for piece in response.iter_bytes()])
            in_events = "event-stream" in response.headers.get("content-type", "")
        reply = _from_events(content) if in_events else _from_json(content)
        return reply._replace(text=self.endpoint.without_key(reply.text))

    async def _limit(self, response: Any) -> None:
        """Has a body end in an error where it grows too long."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise TryAgain("the answer is packed, which was not asked for", maybe_billed=True)
        response.stream = _limited(self._httpx2, response.stream, self.endpoint.max_answer_bytes)

    def _refusal(self, error: Any) -> Exception:
        status, said = error.status_code, self._what_it_said(error)
        if status in (401, 403):
            return AnnotatorRefused(
                f"The server refused the key (status {status}). Check the key in the environment, "
                "and that it may use this model."
            )
        if status == 404:
            return AnnotatorRefused(
                f"The server knows no model {self.endpoint.model!r} under "
                f"{self.endpoint.base_url} (status 404: {said}). Check --model and --base_url."
            )
        if status == 402 or (status == 429 and "insufficient_quota" in said):
            return AnnotatorRefused(f"The server says that the money is used up: {said}.")
        if status in _OF_THIS_TEXT:
            return TextRefused(f"status {status}: {said}")
        if status in _RETRIED or status >= 500:
            return TryAgain(f"status {status}: {said}", _retry_after(error.response.headers))
        return AnnotatorRefused(
            f"The server at {self.endpoint.base_url} answered with status {status}: {said}. Check "
            "--base_url; redirects are not followed."
        )

    def _what_it_said(self, error: Any) -> str:
        """The server's words, short, on one line, and without what a terminal would obey."""
        body = error.body
        if isinstance(body, dict):
            body = " ".join(str(body[name]) for name in ("code", "message") if body.get(name))
        text = self.endpoint.without_key(str(body or "no words"))
        return _on_one_line(text)


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:_SHOWN]


def _limited(httpx2: Any, stream: Any, most_bytes: int) -> Any:
    class Limited(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for piece in stream:
                size += len(piece)
                if size > most_bytes:
                    raise TryAgain(f"the answer has over {most_bytes:,} bytes", maybe_billed=True)
                yield piece

        async def aclose(self) -> None:
            await stream.aclose()

    return Limited()


def _retry_after(headers: Any) -> float:
    """Seconds, from either of the two headers in use; a date is taken for no wish."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    return 0.0


def _from_json(content: bytes) -> Reply:
    body = _parsed(content)
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text, finish = message.get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise TryAgain("the answer is no chat completion", maybe_billed=True) from error
    if not isinstance(text, str):  # refused by the model, or a call of a tool that nobody offered
        text, finish = "", "refusal"
    return Reply(text, _finish(finish), _usage(body.get("usage")))


def _from_events(content: bytes) -> Reply:
    """The whole of an answer that was sent piece by piece (server-sent events)."""
    texts: list[str] = []
    finish, usage, ended = "", None, False
    for line in content.splitlines():
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            ended = True
            break
        body = _parsed(data)
        if "error" in body:
            raise TryAgain("the server broke off with an error", maybe_billed=True)
        usage = _usage(body.get("usage")) or usage
        for choice in body.get("choices") or []:
            try:
                texts.append(choice["delta"].get("content") or "")
                finish = choice.get("finish_reason") or finish
            except (KeyError, TypeError, AttributeError) as error:
                raise TryAgain("the answer is no chat completion", maybe_billed=True) from error
    if not ended:
        raise TryAgain("the answer broke off before its end", maybe_billed=True)
    if not all(isinstance(text, str) for text in texts):
        raise TryAgain("the answer is no chat completion", maybe_billed=True)
    return Reply("".join(texts), _finish(finish), usage)


def _finish(reason: Any) -> str:
    """Only known words, since they are written into records."""
    return reason if reason in FINISH_REASONS else "other"


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TryAgain("the answer is broken JSON", maybe_billed=True) from error
    if not isinstance(body, dict):
        raise TryAgain("the answer is no chat completion", maybe_billed=True)
    return body


def _usage(counted: Any) -> Usage | None:
    if not isinstance(counted, dict):
        return None
    tokens = (counted.get("prompt_tokens"), counted.get("completion_tokens"))
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in tokens):
        return None
    return Usage(*tokens)  # type: ignore[arg-type]
