"""What is fed, and what a decoder may do with it: raise a ProviderError, within a bound of memory and of events."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from providers.dialects import load
from providers.errors import ProviderError
from providers.wire import multipart
from providers.wire.eventstream import EventStreamDecoder
from providers.wire.sse import SseDecoder

GOLDEN = Path(__file__).parents[1] / "golden"
DIALECTS = (
    "openai_chat",
    "openai_completions",
    "openai_responses",
    "anthropic_messages",
    "gemini",
    "bedrock_converse",
)
# What a round may hold on to beyond what it was given: a decoder that copies its input a few times stays below.
GROWTH_MAX = 24
GROWTH_FREE_BYTES = 4 * 1024 * 1024
EVENTS_PER_BYTE_MAX = 8

Feed = Callable[[bytes, random.Random], int]
"""Takes it all. Returns: how many values came out. Raises: ProviderError; anything else is a fault."""


@dataclass(frozen=True)
class Fault(Exception):
    """What a decoder did with these bytes that it may not do."""

    decoder: str
    seed: int
    what: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.decoder}, seed {self.seed}: {self.what}\n{self.data[:2000]!r}"


def _sliced(data: bytes, chance: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = chance.choice((1, 7, 64, 4096))
        yield data[at : at + size]
        at += size


def _requests(dialect: str) -> Feed:
    def feed(data: bytes, chance: random.Random) -> int:
        load(dialect).decode_request(data, model="m", stream=chance.random() < 0.5)
        return 1

    return feed


def _answers(dialect: str) -> Feed:
    def feed(data: bytes, chance: random.Random) -> int:
        load(dialect).decode_response(data)
        return 1

    return feed


def _streams(dialect: str) -> Feed:
    def feed(data: bytes, chance: random.Random) -> int:
        decoder, count = load(dialect).event_decoder(), 0
        for piece in _sliced(data, chance):
            count += sum(1 for _ in decoder.feed(piece))
        return count + sum(1 for _ in decoder.close())

    return feed


def _taps(dialect: str) -> Feed:
    def feed(data: bytes, chance: random.Random) -> int:
        tap, size = load(dialect).tap(True), 0
        for piece in _sliced(data, chance):
            size += len(tap.feed(piece))
        size += len(tap.close())
        assert size <= 2 * len(data) + 1024, "more came out than went in"
        return 1

    return feed


def _errors(dialect: str) -> Feed:
    def feed(data: bytes, chance: random.Random) -> int:
        load(dialect).decode_error(chance.choice((400, 429, 500)), {}, data)
        return 1

    return feed


def _sse(data: bytes, chance: random.Random) -> int:
    decoder = SseDecoder()
    return sum(1 for piece in _sliced(data, chance) for _ in decoder.feed(piece))


def _frames(data: bytes, chance: random.Random) -> int:
    decoder = EventStreamDecoder()
    return sum(1 for piece in _sliced(data, chance) for _ in decoder.feed(piece))


def _forms(data: bytes, chance: random.Random) -> int:
    try:
        return len(multipart.split(data, b"edge"))
    except ValueError:
        return 0


DECODERS: Mapping[str, Feed] = {
    **{f"{dialect} request": _requests(dialect) for dialect in DIALECTS},
    **{f"{dialect} answer": _answers(dialect) for dialect in DIALECTS},
    **{f"{dialect} stream": _streams(dialect) for dialect in DIALECTS},
    **{f"{dialect} tap": _taps(dialect) for dialect in DIALECTS},
    **{f"{dialect} error": _errors(dialect) for dialect in DIALECTS},
    "sse": _sse,
    "eventstream": _frames,
    "forms": _forms,
}


def seeds() -> list[bytes]:
    """Good bytes to bend: every golden file, and what stands in the golden matrix."""
    found = [path.read_bytes() for path in sorted(GOLDEN.rglob("*")) if path.is_file()]
    for path in sorted((GOLDEN / "matrix").glob("*.json")):
        for said in json.loads(path.read_text()).values():
            for value in said.values():
                lines = isinstance(value, list) and all(isinstance(each, str) for each in value)
                found.append(("\n".join(value) + "\n\n").encode() if lines else json.dumps(value).encode())
    found.append(b'--edge\r\ncontent-disposition: form-data; name="a"\r\n\r\nb\r\n--edge--\r\n')
    return found


_TOKENS = (b"null", b"{", b"}", b"[", b"]", b'"', b"\\u0000", b"\xff", b"\xe2\x80\xa8", b"1e999", b"-0", b"\r\n\r\n")
_TOKENS += (b"data: ", b"event: ", b"\x00\x00\x00\x10", b"99999999999999999999", b'"type":5,', b"[" * 5000)


def bent(data: bytes, chance: random.Random) -> bytes:
    """The same with a few things wrong."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randint(0, len(out))
        match chance.randint(0, 4):
            case 0:
                out[at : at + chance.randint(1, 40)] = b""
            case 1:
                out[at:at] = chance.choice(_TOKENS)
            case 2:
                out[at : at + 1] = chance.randbytes(1)
            case 3:
                out[at:at] = out[max(0, at - chance.randint(1, 400)) : at] * chance.randint(1, 4)
            case _:
                del out[at:]
    return bytes(out)


def one_round(seed: int, known: list[bytes]) -> None:
    """Raises: Fault."""
    chance = random.Random(seed)
    name = chance.choice(list(DECODERS))
    data = bent(chance.choice(known), chance)
    tracemalloc.start()
    try:
        count = DECODERS[name](data, chance)
    except ProviderError:
        count = 0
    except RecursionError:
        count = 0  # brackets thousands deep: `gateway/ingress/errors.py` says so to the client
    except Exception as error:
        raise Fault(name, seed, f"{type(error).__name__}: {error}", data) from error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if peak > GROWTH_FREE_BYTES + GROWTH_MAX * len(data):
        raise Fault(name, seed, f"held {peak} bytes for {len(data)}", data)
    if count > EVENTS_PER_BYTE_MAX * (len(data) + 1):
        raise Fault(name, seed, f"{count} values of {len(data)} bytes", data)
