"""Runs every cell and renders what was seen.

A cell is green, refused by name (the gateway said `unsupported` and what), or not offered by the SDK. Anything else is
red, and red fails.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from billing.usage import INPUT_METERS, Meter
from tests.e2e.yard import BEDROCK_CLAUDE, CLAUDE, Yard
from tests.matrix.anthropic_sdks import Messages, MessagesOnBedrock, MessagesOnVertex
from tests.matrix.asks import Client, NotOffered, Said
from tests.matrix.aws_sdk import Converse, InvokeModel
from tests.matrix.azure_sdk import AzureInference
from tests.matrix.features import FAULTS, FEATURES, Check
from tests.matrix.google_sdk import Gemini, GeminiOnVertex, Interactions
from tests.matrix.openai_sdks import AzureChat, CerebrasChat, Chat, Completions, GroqChat, Responses

CLIENTS: tuple[type[Client], ...] = (
    Chat,
    AzureChat,
    Completions,
    Responses,
    GroqChat,
    CerebrasChat,
    AzureInference,
    Messages,
    MessagesOnBedrock,
    MessagesOnVertex,
    Gemini,
    GeminiOnVertex,
    Interactions,
    Converse,
    InvokeModel,
)
# Column -> what a client asks for. Clouds that host several makers speak a dialect for each.
COLUMNS: Mapping[str, str] = {
    "openai": "openai/echo-1",
    "azure": "azure_ai/echo-1",
    "azure Claude": f"azure_ai/{CLAUDE}",
    "groq": "groq/echo-1",
    "cerebras": "cerebras/echo-1",
    "vLLM": "openai_like/echo-1",
    "local": "local/echo-1",
    "cohere": "cohere/command-a",
    "sagemaker": "sagemaker/echo-1",
    "sagemaker framed": "sagemaker_invocations/echo-1",
    "anthropic": f"anthropic/{CLAUDE}",
    "bedrock": "bedrock/amazon.nova-pro-v1:0",
    "bedrock Claude": f"bedrock/{BEDROCK_CLAUDE}",
    "bedrock mantle": "bedrock_mantle/openai.gpt-oss-120b",
    "vertex": "vertex/gemini-2.5-flash",
    "vertex Claude": f"vertex/{CLAUDE}",
    "vertex Llama": "vertex/meta/llama-4-maverick-17b-128e-instruct-maas",
    "gemini": "gemini/gemini-3-pro-preview",
}
FILE = Path(__file__).parents[2] / "gateway" / "MATRIX.md"
FAULTS_FILE = FILE.with_name("FAULTS.md")
AT_ONCE = 24
TIMEOUT_S = 180.0

Outcome = Literal["green", "refused", "not offered", "red"]
SIGNS: Mapping[Outcome, str] = {"green": "yes", "not offered": "-", "red": "RED"}


@dataclass(frozen=True)
class Cell:
    """told: the gateway's words of a refusal, or what was wrong."""

    client: str
    feature: str
    column: str
    outcome: Outcome
    told: str = ""


async def run(yard: Yard, clients: Iterable[type[Client]] = CLIENTS) -> list[Cell]:
    """Features first; then it is seen that every token of every backend was metered; faults last."""
    made = [client(yard.gateway) for client in clients]
    try:
        cells = await _all(made, FEATURES)
        books = Cell("the books", "every token that was served is metered", "", "green")
        if wrong := await unmetered(yard):
            books = replace(books, outcome="red", told=wrong)
        return [*cells, books, *await _all(made, FAULTS)]
    finally:
        for client in made:
            await client.ended()


async def _all(clients: list[Client], features: Mapping[str, Check]) -> list[Cell]:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(client: Client, feature: str, column: str) -> Cell:
        async with room:
            return await _cell(client, feature, features[feature], column)

    wanted = [(client, feature, column) for client in clients for feature in features for column in COLUMNS]
    return list(await asyncio.gather(*(one(*names) for names in wanted)))


async def _cell(client: Client, feature: str, check: Check, column: str) -> Cell:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await check(client, COLUMNS[column])
    except NotOffered:
        return Cell(client.name, feature, column, "not offered")
    except Exception as error:
        if (told := _refusal(error)) is not None:
            return Cell(client.name, feature, column, "refused", told)
        return Cell(client.name, feature, column, "red", f"{type(error).__name__}: {error}"[:2000])
    return Cell(client.name, feature, column, "green")


# SDKs wrap the gateway's words in some of their own.
_WHAT = r"[\w.\[\]]+(?:: [\w ]+)?"
_REFUSAL = re.compile(rf"(?:no deployment of '[^']+' supports|\w+ does not support) {_WHAT}(?:, {_WHAT})*")


def _refusal(error: Exception) -> str | None:
    """The gateway's words where it refused by name, whatever the SDK made an exception of."""
    if isinstance(error, AssertionError | TimeoutError):
        return None
    try:
        said = Said(error)
    except Exception:
        return None
    found = _REFUSAL.search(said.message) if said.is_refusal else None
    return found[0] if found else None


async def unmetered(yard: Yard) -> str:
    """Where what a backend says it served is not what was metered of it, to the token; empty when nowhere."""
    metered: dict[str, list[int]] = {}
    for row in await yard.gateway.rows():
        total = metered.setdefault(row["provider"], [0, 0])
        for name, count in row["quantities"].items():
            if name.endswith("_tokens"):
                total[Meter(name) not in INPUT_METERS] += count
    wrong = []
    for name, emulator in yard.backends.items():
        served = [emulator.stats.input_tokens, emulator.stats.output_tokens]
        if metered.get(name, [0, 0]) != served:
            wrong.append(f"{name}: metered {metered.get(name)}, served {served}")
    return "; ".join(wrong)


def rendered(cells: list[Cell]) -> str:
    """The tables as Markdown."""
    notes: dict[str, int] = {}
    by_place = {(cell.client, cell.feature, cell.column): cell for cell in cells}
    lines = []
    for client in CLIENTS:
        if not any(cell.client == client.name for cell in cells):
            continue
        lines += [
            f"## {client.name}",
            "",
            *([client.note, ""] if client.note else []),
            "| | " + " | ".join(COLUMNS) + " |",
            "| --- " * (len(COLUMNS) + 1) + "|",
        ]
        for feature in (*FEATURES, *FAULTS):
            found = [by_place[client.name, feature, column] for column in COLUMNS]
            if all(cell.outcome == "not offered" for cell in found):
                continue
            lines.append(f"| {feature} | " + " | ".join(_sign(cell, notes) for cell in found) + " |")
        lines.append("")
    lines += ["## Refused by name", ""]
    lines += [f"{number}. {told}" for told, number in notes.items()]
    return "\n".join([*_head(cells), "", *lines, ""])


def _sign(cell: Cell, notes: dict[str, int]) -> str:
    if cell.outcome == "refused":
        return f"[{notes.setdefault(_plain(cell), len(notes) + 1)}]"
    return SIGNS[cell.outcome]


def _plain(cell: Cell) -> str:
    """A refusal without what differs from cell to cell: the alias and the request's number."""
    return cell.told.replace(f"'{COLUMNS[cell.column]}'", "this model")


def _head(cells: list[Cell]) -> list[str]:
    count = {outcome: sum(cell.outcome == outcome for cell in cells) for outcome in ("green", "refused", "not offered")}
    sdks = sorted({client.package for client in CLIENTS})
    return [
        "# What every SDK gets from every backend",
        "",
        "Written by `python -m tests.matrix` from a run: each client below is the real SDK, each column an emulated",
        "backend, each cell one or more requests through one gateway. `yes`: asked and judged right. `[n]`: refused",
        "by name, in the words below. `-`: the SDK has no word for it. Before the faults are played, the tokens that",
        "each backend served are compared with those metered of it.",
        "",
        f"{count['green']} green, {count['refused']} refused by name, {count['not offered']} not offered, none red.",
        "SDKs: " + ", ".join(f"{name} {version(name)}" for name in sdks) + ".",
    ]
