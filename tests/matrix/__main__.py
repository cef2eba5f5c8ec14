"""`python -m tests.matrix` runs every cell and writes `gateway/MATRIX.md`; `--client NAME` runs one and prints it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from billing.migrate import upgrade
from tests import services
from tests.e2e.yard import Yard, all_models, yard_of
from tests.matrix import faults, rails
from tests.matrix.asks import Client
from tests.matrix.run import CLIENTS, FAULTS_FILE, FILE, Cell, rendered, run


async def cells_of(clients: Iterable[type[Client]]) -> list[Cell]:
    async with standing() as yard:
        return await run(yard, clients)


async def faults_seen() -> list[faults.Seen]:
    async with standing() as yard:
        return await faults.run(yard)


def show_faults() -> int:
    seen = asyncio.run(faults_seen())
    red = [each for each in seen if each.wrong]
    for each in red:
        kind = "stream" if each.stream else "whole"
        print(f"RED {each.fault} | {each.family} | {each.dialect} {kind} {each.shown}: {each.wrong}", file=sys.stderr)
    if not red:
        FAULTS_FILE.write_text(faults.rendered(seen))
    else:
        print(faults.rendered(seen))
    return 1 if red else 0


def show_routing() -> int:
    with tempfile.TemporaryDirectory(prefix="farebox-") as name, services.valkey() as redis_url:
        rails.PAGE.write_text(rails.rendered(asyncio.run(rails.run(Path(name), redis_url))))
    return 0


@contextlib.asynccontextmanager
async def standing() -> AsyncIterator[Yard]:
    with tempfile.TemporaryDirectory(prefix="farebox-") as name, services.valkey() as redis_url:
        folder, template = Path(name) / "gateway", Path(name) / "template.db"
        folder.mkdir()
        await upgrade(f"sqlite:///{template}")
        async with yard_of(folder, template, redis_url, all_models()) as yard:
            yield yard


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--client", help="one of: " + ", ".join(client.name for client in CLIENTS))
    parser.add_argument("--faults", action="store_true", help=f"write {FAULTS_FILE.name} instead")
    parser.add_argument("--routing", action="store_true", help="write gateway/routing/FAULTS.md instead")
    asked = parser.parse_args()
    if asked.routing:
        sys.exit(show_routing())
    if asked.faults:
        sys.exit(show_faults())
    chosen = [client for client in CLIENTS if asked.client in (None, client.name)]
    cells = asyncio.run(cells_of(chosen))
    red = [cell for cell in cells if cell.outcome == "red"]
    for cell in red:
        print(f"RED {cell.client} | {cell.feature} | {cell.column}: {cell.told}", file=sys.stderr)
    if asked.client is None and not red:
        FILE.write_text(rendered(cells))
    else:
        print(rendered(cells))
    sys.exit(1 if red else 0)


if __name__ == "__main__":
    main()
