"""Every provider fault x backend family x client dialect, whole and streamed: what the client sees and what is metered.

Asked without an SDK, since what comes back is to be judged to the byte; the matrix shows that SDKs raise for it. The
answers are read by the client dialect's own decoder. A cell is what a client saw: the answer, a status, or an error in
the middle of the stream; whatever else (a hang, an answer cut in silence, a 500, rows that say otherwise) is red.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from providers.dialects import load
from providers.errors import ProviderError
from providers.neutral import ChatResponse, TextPart, collect
from tests.e2e.yard import Yard
from tests.emulators.scripted import FAULTS
from tests.matrix.run import COLUMNS

DIALECTS = ("openai_chat", "openai_responses", "anthropic_messages", "gemini", "bedrock_converse")
# What no emulator of this family can say, since the provider has no such answer.
_OPENAI_HAS_NONE = frozenset({"tool-use-failed", "498", "529", "402"})
UNHEARD_OF: Mapping[str, frozenset[str]] = {
    "openai": _OPENAI_HAS_NONE,
    "azure": _OPENAI_HAS_NONE,
    "vertex": frozenset({"402", "429-quota", "498", "529", "tool-use-failed"}),
    "gemini": frozenset({"402", "429-quota", "498", "529", "tool-use-failed"}),
    "bedrock": frozenset({"429-retry-after-date"}),
    "bedrock Claude": frozenset({"429-retry-after-date"}),
}
FAMILIES = tuple(name for name in COLUMNS if name not in ("local", "cohere", "vertex Llama"))
# They keep a connection waiting and no processor busy, or the other way round.
PATIENT = ("slow-first-byte", "stall")
HEAVY = ("huge-chunk", "byte-by-byte")
TIMEOUT_S = 60.0
ROWS_S = 30.0


@dataclass(frozen=True)
class Seen:
    """shown: "answer", a status, or "cut": an error in the middle of the stream. wrong: what must not be."""

    fault: str
    family: str
    dialect: str
    stream: bool
    shown: str
    request_id: str = ""
    text: str = ""
    wrong: str = ""


def request_of(dialect: str, alias: str, prompt: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Path and body of a plain request."""
    said = [{"role": "user", "content": prompt}]
    match dialect:
        case "openai_chat":
            return "/v1/chat/completions", {"model": alias, "messages": said, "stream": stream}
        case "openai_responses":
            return "/v1/responses", {"model": alias, "input": prompt, "stream": stream, "store": False}
        case "anthropic_messages":
            return "/v1/messages", {"model": alias, "messages": said, "stream": stream, "max_tokens": 500}
        case "gemini":
            verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
            return f"/v1beta/models/{alias}:{verb}", {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
    verb = "converse-stream" if stream else "converse"
    quoted = alias.replace("/", "%2F").replace(":", "%3A")
    return f"/model/{quoted}/{verb}", {"messages": [{"role": "user", "content": [{"text": prompt}]}]}


async def run(yard: Yard, faults: tuple[str, ...] = tuple(FAULTS)) -> list[Seen]:
    """Rows are looked for when all is over: the last of a broken stream may be written after the client is told."""
    room = {fault: 150 if fault in PATIENT else 4 if fault in HEAVY else 16 for fault in faults}
    seen: list[Seen] = []
    limits = httpx.Limits(max_connections=150)
    key = {"authorization": f"Bearer {yard.gateway.key}"}
    async with httpx.AsyncClient(
        base_url=yard.gateway.url, headers=key, limits=limits, timeout=TIMEOUT_S, trust_env=False
    ) as http:
        for at_once in sorted(set(room.values())):
            group = tuple(fault for fault in faults if room[fault] == at_once)
            places = asyncio.Semaphore(at_once)
            seen += await asyncio.gather(*(_in(places, http, *names) for names in _cells(group)))
    rows: dict[str, dict[str, Any]] = {}
    async with asyncio.timeout(ROWS_S):
        while not all(each.request_id in rows for each in seen if each.request_id):
            rows = {row["id"]: row for row in await yard.gateway.rows()}
    order = {names: number for number, names in enumerate(_cells(faults))}
    seen.sort(key=lambda each: order[each.fault, each.family, each.dialect, each.stream])
    return [_checked(each, rows.get(each.request_id)) for each in seen]


def _cells(faults: tuple[str, ...]) -> Iterator[tuple[str, str, str, bool]]:
    for fault in faults:
        for family in FAMILIES:
            if fault not in UNHEARD_OF.get(family, ()):
                for dialect in DIALECTS:
                    yield fault, family, dialect, False
                    yield fault, family, dialect, True


async def _in(places: asyncio.Semaphore, http: httpx.AsyncClient, *names: Any) -> Seen:
    async with places:
        return await _seen(http, *names)


async def _seen(http: httpx.AsyncClient, fault: str, family: str, dialect: str, stream: bool) -> Seen:
    path, body = request_of(dialect, COLUMNS[family], f"x-script: long=40 fault={fault}", stream=stream)
    names = (fault, family, dialect, stream)
    try:
        async with http.stream("POST", path, json=body) as answer:
            ident = answer.headers.get("x-request-id", "")
            data = await answer.aread()
    except httpx.HTTPError as error:
        return Seen(*names, "nothing", wrong=f"{type(error).__name__}: {error}")
    if answer.status_code != 200:
        wrong = "" if answer.status_code != 500 else data.decode()[:300]
        if not load(dialect).decode_error(answer.status_code, answer.headers, data).message:
            wrong = f"an error without words: {data[:300]!r}"
        return Seen(*names, str(answer.status_code), ident, wrong=wrong)
    return _read(names, ident, dialect, data, stream)


def _read(names: tuple[str, str, str, bool], ident: str, dialect: str, data: bytes, stream: bool) -> Seen:
    text = ""
    try:
        if stream:
            decoder = load(dialect).event_decoder()
            events = []
            try:
                events += decoder.feed(data)
                events += decoder.close()
            except ProviderError:
                return Seen(*names, "cut", ident)
            whole: ChatResponse = collect(events)
        else:
            whole = load(dialect).decode_response(data)
        text = "".join(part.text for part in whole.candidates[0].content if isinstance(part, TextPart))
    except Exception as error:
        return Seen(*names, "answer", ident, text, f"{type(error).__name__}: {error} in {data[-300:]!r}")
    return Seen(*names, "answer", ident, text)


def _checked(seen: Seen, row: Mapping[str, Any] | None) -> Seen:
    """With what the row says of it."""
    wrong = seen.wrong or _problem(seen, row)
    return Seen(seen.fault, seen.family, seen.dialect, seen.stream, seen.shown, seen.request_id, seen.text, wrong)


def _problem(seen: Seen, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "no row"
    told = f"row {row['outcome']} estimated={row['estimated']} {row['quantities']}"
    match seen.shown:
        case "answer":
            if not seen.text.endswith("word40") and seen.fault != "content-filter":
                return f"a torn answer taken for whole: {seen.text[-40:]!r}"
            right = row["outcome"] == "completed" and row["input_tokens"] > 0
            return "" if right and (row["estimated"] or seen.fault != "no-usage") else told
        case "cut":
            # What failed before the first event is told in the stream when its head had to be sent meanwhile.
            return "" if row["outcome"] in ("upstream_failed", "timed_out", "rejected") else told
    paid = any(count for name, count in row["quantities"].items() if name != "requests")
    return told if row["outcome"] == "completed" or paid else ""


def rendered(seen: list[Seen]) -> str:
    """A table of what clients see: whole, then streamed; one word where all dialects agree."""
    shown: dict[tuple[str, str, bool], set[str]] = {}
    for each in seen:
        shown.setdefault((each.fault, each.family, each.stream), set()).add(each.shown)
    lines = ["| | " + " | ".join(FAMILIES) + " |", "| --- " * (len(FAMILIES) + 1) + "|"]
    for fault in dict.fromkeys(each.fault for each in seen):
        cells = []
        for family in FAMILIES:
            pair = [_word(shown.get((fault, family, stream), {"-"})) for stream in (False, True)]
            cells.append(pair[0] if pair[0] == pair[1] else ", ".join(pair))
        lines.append(f"| {fault}: {FAULTS[fault]} | " + " | ".join(cells) + " |")
    return "\n".join([*HEAD, "", *lines, ""])


def _word(shown: set[str]) -> str:
    """A status that came late, behind the head of the stream, is still that status."""
    return " or ".join(sorted(shown - {"cut"} or shown))


HEAD = (
    "# What becomes of a provider's faults",
    "",
    "Written by `python -m tests.matrix --faults` from a run: each fault played by each backend family, asked for in",
    "each of the five chat dialects. A cell says what the client saw of a whole answer, then of a stream where that is",
    "another: the `answer`; a status, in its dialect's envelope; `cut`, an error in the middle of the stream, in its",
    "dialect's form. For each of them the usage row is compared: an answer is `completed` (`estimated` where the",
    "provider told no usage), what was cut is `upstream_failed` or `timed_out` and charged as delivered, a status is",
    "charged nothing.",
)
