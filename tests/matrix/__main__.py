"""`python -m tests.matrix` runs every cell and writes `gateway/MATRIX.md`; `--client NAME` runs one and prints it."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from billing.migrate import upgrade
from tests import services
from tests.e2e.yard import all_models, yard_of
from tests.matrix.asks import Client
from tests.matrix.run import CLIENTS, FILE, Cell, rendered, run


async def seen(clients: Iterable[type[Client]]) -> list[Cell]:
    with tempfile.TemporaryDirectory(prefix="farebox-") as name, services.valkey() as redis_url:
        folder, template = Path(name) / "gateway", Path(name) / "template.db"
        folder.mkdir()
        await upgrade(f"sqlite:///{template}")
        async with yard_of(folder, template, redis_url, all_models()) as yard:
            return await run(yard, clients)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--client", help="one of: " + ", ".join(client.name for client in CLIENTS))
    asked = parser.parse_args()
    chosen = [client for client in CLIENTS if asked.client in (None, client.name)]
    cells = asyncio.run(seen(chosen))
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
