"""What n workers give: `python -m tests.bench.workers [--workers 1,2,4] [--rounds 4] [--json]`.

n cores give n times the requests of one if none of n workers needs more CPU a request than one alone, and nothing that
they share is full. Both can be seen on any machine: installations of `farebox serve --workers n`, each with a
PostgreSQL and a Valkey of its own, are asked in turns, with 64 requests in flight for each worker; CPU is by schedstat.
`of_one`: the cost of one worker's request beside theirs, so 0.9 and more is the goal. `valkey_us`: what a request takes
of its one thread, which many workers share."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from billing.accounts import Window
from billing.migrate import upgrade
from gateway.admission.key_admin import KeyTerms
from gateway.config import load as settings_of
from tests.bench.hotpath import Gateway, drained, load, wait_for
from tests.e2e.test_crash import prepare, written
from tests.services import free_ports, own_postgres, valkey

IN_FLIGHT = 64
TERMS = KeyTerms(rpm=10**9, tpm=10**10, parallel=10**6)


class Installation(Gateway):
    """Workers beneath one `farebox serve`, and the two servers that they share."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        port: int,
        database_url: str,
        key: str,
        workers: int,
        servers: tuple[psutil.Process, psutil.Process],
    ) -> None:
        super().__init__(process, port, database_url)
        self.key = key
        self.workers = workers
        self.valkey, self.postgres = servers

    def spent_s(self) -> dict[str, list[float]]:
        """CPU so far: of each worker, of Valkey, of all of PostgreSQL's processes, those that have ended included."""
        workers = psutil.Process(self.process.pid).children() or [psutil.Process(self.process.pid)]
        postgres = self.postgres.cpu_times()
        spent = [postgres.user, postgres.system, postgres.children_user, postgres.children_system]
        for child in self.postgres.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                spent += child.cpu_times()[:2]
        return {
            "workers": [cpu_s(worker.pid) for worker in workers],
            "valkey": [cpu_s(self.valkey.pid)],
            "postgres": [sum(spent)],
        }


def cpu_s(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


@contextlib.contextmanager
def installed(workers: int, upstream: int) -> Iterator[Installation]:
    [port] = free_ports(1)
    with contextlib.ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="fbx-workers-")))
        before = _children()
        redis_url = exits.enter_context(valkey())
        [valkey_server] = (after := _children()) - before
        url = exits.enter_context(own_postgres())
        [postgres] = _children() - after
        asyncio.run(upgrade(url))
        config = written(folder, f"http://127.0.0.1:{upstream}", url, redis_url, port)
        key = asyncio.run(prepare(settings_of(config, {}), terms=TERMS, budgets=((Window.TOTAL, 10**18),)))
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--workers", str(workers)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        exits.callback(process.wait)
        exits.callback(process.terminate)
        wait_for(port)
        yield Installation(process, port, url, key, workers, (valkey_server, postgres))


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def measure(counts: Sequence[int], rounds: int, seconds: float) -> list[dict[str, Any]]:
    [upstream] = free_ports(1)
    mock = subprocess.Popen([sys.executable, "-m", "tests.bench.mock", str(upstream)])
    with contextlib.ExitStack() as exits:
        exits.callback(mock.wait)
        exits.callback(mock.terminate)
        wait_for(upstream)
        installations = [exits.enter_context(installed(count, upstream)) for count in counts]
        for one in installations:
            _asked(one, 1.5)
        found: dict[int, list[dict[str, float]]] = {one.workers: [] for one in installations}
        for turn in range(rounds):
            for one in installations[:: -1 if turn % 2 else 1]:
                found[one.workers].append(_asked(one, seconds))
    figures = [
        {"workers": count, **{name: statistics.median(each[name] for each in seen) for name in seen[0]}}
        for count, seen in found.items()
    ]
    for each in figures:
        each["of_one"] = figures[0]["cpu_us"] / each["cpu_us"]
    return figures


def _asked(one: Installation, seconds: float) -> dict[str, float]:
    """CPU of one request with its row in SQL, of the workers together, and of what they share."""
    before = one.spent_s()
    told = ("--key", one.key, "--model", "echo", "--connections", IN_FLIGHT * one.workers, "--seconds", seconds)
    answers = load(one.port, *told, pin=False)["answers"]
    drained(one)
    after = one.spent_s()
    workers = [now - then for now, then in zip(after["workers"], before["workers"], strict=True)]
    return {
        "cpu_us": sum(workers) / answers * 1e6,
        "busiest_share": max(workers) / sum(workers),
        "valkey_us": (sum(after["valkey"]) - sum(before["valkey"])) / answers * 1e6,
        "postgres_us": (sum(after["postgres"]) - sum(before["postgres"])) / answers * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2,4", help="the first is what the others are held against")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for figures in measure([int(count) for count in args.workers.split(",")], args.rounds, args.seconds):
        rounded = {
            name: round(value, 3 if name in ("of_one", "busiest_share") else 1) for name, value in figures.items()
        }
        print(json.dumps(rounded) if args.json else "  ".join(f"{name} {value}" for name, value in rounded.items()))


if __name__ == "__main__":
    main()
