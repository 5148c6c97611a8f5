"""A small client of an OpenAI-compatible server: completions of token ids, whole and streamed, with the times at which they came."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

MOST_BYTES = 16 * 2**20  # of one answer that are read
MOST_LINE = 2**20  # bytes of one event of a stream


class Refused(Exception):
    """The server answered with an error, or with what is no completion; the message quotes it."""


HTTPError = (Refused, http.client.HTTPException)
"""What a request raises beside OSError."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream: its token ids, and when it came (seconds since the request was sent)."""

    tokens: list[int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Client:
    """A server at host:port. `timeout`: seconds without a byte after which a request raises TimeoutError."""

    host: str
    port: int
    model: str
    timeout: float = 60.0

    def complete(self, prompt: Sequence[int], count: int) -> list[int]:
        """The ids of `count` greedy tokens. Raises Refused, OSError (TimeoutError is one) or http.client.HTTPException."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            response = self._ask(connection, prompt, count, stream=False)
            return tokens_of(response.read(MOST_BYTES))
        finally:
            connection.close()

    def stream(self, prompt: Sequence[int], count: int) -> Iterator[Chunk]:
        """The same, as the tokens come. A stream that ends before its time raises Refused."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            response = self._ask(connection, prompt, count, stream=True)
            while line := response.readline(MOST_LINE):
                data = event_of(line)
                if data == b"[DONE]":
                    return
                if data and (tokens := tokens_of(data)):
                    yield Chunk(tokens, time.perf_counter() - began)
            raise Refused("the stream ended without [DONE]")
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, prompt: Sequence[int], count: int, *, stream: bool) -> http.client.HTTPResponse:
        body = msgspec.json.encode(request(self.model, prompt, count, stream=stream))
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise Refused(f"HTTP {response.status}: {response.read(2000).decode('utf-8', 'replace')}")
        return response


def request(model: str, prompt: Sequence[int], count: int, *, stream: bool) -> dict[str, Any]:
    """The body that asks for `count` greedy tokens, as ids: no tokenizer is needed on either side."""
    return {
        "model": model, "prompt": list(prompt), "max_tokens": count, "temperature": 0, "ignore_eos": True, "return_token_ids": True,
        "seed": 0, "stream": stream,
    }  # fmt: skip


def event_of(line: bytes) -> bytes:
    """The data of one line of a server-sent event stream; empty for any other line."""
    return line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""


def tokens_of(body: bytes) -> list[int]:
    """The token ids in an answer or in an event of a stream. Raises Refused where there are none to be read."""
    try:
        answer = msgspec.json.decode(body, type=dict[str, Any])
        if "error" in answer:
            raise Refused(str(answer["error"])[:2000])
        return msgspec.convert([token for choice in answer["choices"] for token in choice.get("token_ids") or ()], list[int])
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise Refused(f"not a completion ({error}): {body[:300].decode('utf-8', 'replace')}") from None
