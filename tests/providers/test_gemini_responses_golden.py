"""Golden files of the Gemini and Responses dialects: `case.json` is a client's request, `case.neutral.json` how it is
read, `case.<target>.json` how it is said to that target (body and what was dropped); `case.sse` is a provider's stream,
`case.events.json` its events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from providers.dialects import load
from providers.dialects.base import Dialect
from providers.errors import Unsupported

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = ("gemini", "openai_responses")

# Which case meets which target, and the model's name there.
TARGETS: dict[str, tuple[tuple[str, str], ...]] = {
    "gemini/agent_turn": (("gemini", "gemini-3-pro"), ("openai_responses", "gpt-5")),
    "openai_responses/codex_turn": (("openai_responses", "gpt-5"), ("gemini", "gemini-2.5-flash")),
    "openai_responses/stateful": (("openai_responses", "gpt-5"), ("gemini", "gemini-3-flash")),
}
STREAMS = tuple(sorted(str(path.relative_to(GOLDEN))[:-4] for s in SOURCES for path in (GOLDEN / s).glob("*.sse")))


def requests() -> Iterator[tuple[str, str, str]]:
    for case, targets in TARGETS.items():
        for target, model in targets:
            yield case, target, model


def decoded(case: str) -> Any:
    body = (GOLDEN / f"{case}.json").read_bytes()
    source = case.partition("/")[0]
    return load(source).decode_request(body, model="alias" if source == "gemini" else None, stream=None)


def said(dialect: Dialect, case: str, model: str) -> dict[str, Any]:
    """How the request goes to a target, or the names of what it would not take."""
    try:
        encoded = dialect.encode_request(decoded(case), model=model, strict=False)
    except Unsupported as error:
        return {"refused": list(error.features)}
    found: dict[str, Any] = plain({"body": encoded.body, "dropped": sorted(encoded.dropped)})
    return found


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def expected(name: str) -> Any:
    return json.loads((GOLDEN / name).read_bytes())


@pytest.mark.parametrize("case", list(TARGETS))
def test_requests_are_read(case: str) -> None:
    assert plain(decoded(case)) == expected(f"{case}.neutral.json")


@pytest.mark.parametrize(("case", "target", "model"), list(requests()))
def test_requests_are_said(case: str, target: str, model: str) -> None:
    assert said(load(target), case, model) == expected(f"{case}.{target}.json")


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_streams_are_read(case: str, step: int) -> None:
    assert events(case, step) == expected(f"{case}.events.json")


def events(case: str, step: int) -> Any:
    data = (GOLDEN / f"{case}.sse").read_bytes()
    decoder = load(case.partition("/")[0]).event_decoder()
    found = [event for at in range(0, len(data), step) for event in decoder.feed(data[at : at + step])]
    return plain([*found, *decoder.close()])
