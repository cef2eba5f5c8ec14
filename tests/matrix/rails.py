"""Each fault under each strategy: a provider that fails so, first in its alias, with another one behind it and alone.

`python -m tests.matrix --routing` runs all of it and writes `gateway/routing/FAULTS.md`. The suite holds the page to
what it sees of some faults itself (`tests/e2e/test_faults_routing.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

import httpx
from msgspec import Struct

from billing.migrate import upgrade
from gateway.config import DeploymentSettings, ModelSettings, Secret, Strategy, TimeoutSettings
from tests.e2e.harness import PRICE, House, house, provider, settings_for
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.scripted import FAULTS

PAGE: Final = Path(__file__).parents[2] / "gateway" / "routing" / "FAULTS.md"
STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)
ALONE: Final = "alone"
AT_ONCE: Final = 8
# Long enough for any answer of an emulator here, short enough to wait for those that never come.
TIMEOUTS: Final = TimeoutSettings(connect_s=5, first_byte_s=4, between_bytes_s=4, total_s=60)

HEAD: Final = """# What becomes of a provider's faults, by strategy

Written by `python -m tests.matrix --routing` from a run: a provider that fails so stands first, another one behind it
(`priority` 1), and each strategy chooses; in the first column nobody stands behind it. A cell says what the client saw
of a whole answer and, where that is another, of a stream: the `answer`; a status; `cut`, an error in the middle of a
stream; and how many calls to providers it took. Each cell is the first request that its provider ever saw, so no
breaker has opened; `tests/e2e/test_faults_routing.py` shows what the second one finds, and that among equals one that
is down is soon left alone.
"""


class Seen(Struct, frozen=True):
    """status: of a stream that broke, 0. calls: to providers."""

    status: int
    calls: int

    def __str__(self) -> str:
        how = {200: "answer", 0: "cut"}.get(self.status, str(self.status))
        return f"{how}, {self.calls}"


Cell = tuple[Seen, Seen]
"""Of a whole answer, of a stream."""


def shown(cell: Cell) -> str:
    whole, stream = cell
    return str(whole) if whole == stream else f"{whole}; {stream}"


def row(fault: str, cells: Sequence[str]) -> str:
    return f"| {fault}: {FAULTS[fault]} | " + " | ".join(cells) + " |"


def rendered(seen: Mapping[str, Mapping[str, Cell]]) -> str:
    names = (ALONE, *STRATEGIES)
    lines = [HEAD, f"| | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    lines += [row(fault, [shown(cells[name]) for name in names]) for fault, cells in seen.items()]
    return "\n".join(lines) + "\n"


async def run(folder: Path, redis_url: str, faults: Sequence[str] = tuple(FAULTS)) -> dict[str, dict[str, Cell]]:
    """Each alias has accounts of its own, so that no breaker tells another's."""
    url = f"sqlite:///{folder / 'farebox.db'}"
    await upgrade(url)
    models = tuple(
        _alias(fault, name, form) for fault in faults for name in (ALONE, *STRATEGIES) for form in ("whole", "stream")
    )
    async with OpenAIEmulator() as upstream:
        up = {"up": provider("openai", f"{upstream.url}/v1")}
        async with house(settings_for(folder, url, redis_url, up, models, timeouts=TIMEOUTS)) as gateway:
            return await _asked(gateway, faults)


def _alias(fault: str, name: str, form: str) -> ModelSettings:
    alias = f"{name}-{fault}-{form}"
    deployments = tuple(
        DeploymentSettings(
            provider="up",
            model=served,
            priority=place,
            price=PRICE,
            account=f"{alias}-{place}",
            credential={"api_key": Secret("sk-test", {})},
        )
        for place, served in enumerate((f"fault-{fault}",) if name == ALONE else (f"fault-{fault}", "echo-1"))
    )
    strategy: Strategy = next((each for each in STRATEGIES if each == name), "weighted")
    return ModelSettings(alias=alias, deployments=deployments, strategy=strategy)


async def _asked(gateway: House, faults: Sequence[str]) -> dict[str, dict[str, Cell]]:
    room = asyncio.Semaphore(AT_ONCE)
    forms = ("whole", "stream")
    names = [(fault, name, form) for fault in faults for name in (ALONE, *STRATEGIES) for form in forms]
    headers = {"authorization": f"Bearer {gateway.key}"}
    async with httpx.AsyncClient(timeout=120, headers=headers) as http:

        async def one(fault: str, name: str, form: str) -> int:
            asked = {"model": f"{name}-{fault}-{form}", "messages": [{"role": "user", "content": "hi"}]}
            async with room:
                answer = await http.post(f"{gateway.v1}/chat/completions", json=asked | {"stream": form == "stream"})
            broke = answer.status_code == 200 and form == "stream" and '"error"' in answer.text
            return 0 if broke else answer.status_code

        statuses = dict(zip(names, await asyncio.gather(*(one(*each) for each in names)), strict=True))
    # As the rows have it: a connection that was kept open and turns out closed is no call.
    calls = {row["alias"]: row["attempts"] for row in await gateway.rows(len(names))}

    def seen(fault: str, name: str, form: str) -> Seen:
        return Seen(statuses[fault, name, form], calls[f"{name}-{fault}-{form}"])

    return {
        fault: {name: (seen(fault, name, "whole"), seen(fault, name, "stream")) for name in (ALONE, *STRATEGIES)}
        for fault in faults
    }
