"""What a request and a chunk cost, everything on: `python -m tests.bench.hotpath [--quick] [--json] [--postgres]`.

Starts a mock upstream, Valkey, a database and `farebox bench serve`, each a process of its own, and measures the
gateway from outside. CPU is that of the gateway's process: user and system, all threads, to the nanosecond. Valkey's
and PostgreSQL's do not count; SQLite works inside the gateway and does. Run it twice round a change on one machine, and
believe differences above 15 %."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.services import free_ports, own_postgres, valkey

KEY = "fbx-bench"
READY_S = 60.0


class Gateway:
    """A running `farebox bench serve`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, database_url: str) -> None:
        self.process = process
        self.port = port
        self.database_url = database_url
        self.start_wall_s = 0.0
        self.start_cpu_s = 0.0

    @property
    def cpu_s(self) -> float:
        """Of all threads, to the nanosecond. Source: Linux Documentation/scheduler/sched-stats, read 2026-11."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9

    @property
    def loop_cpu_s(self) -> float:
        """Of the event loop's thread alone."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9

    @property
    def rss_mb(self) -> float:
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(next(line for line in rollup.splitlines() if line.startswith("Rss:")).split()[1]) / 1024

    def rows(self) -> int:
        """Usage rows that stand in SQL."""
        return asyncio.run(_rows(self.database_url))


async def _rows(database_url: str) -> int:
    from sqlalchemy import func, select

    from billing.db import create_engine, reading
    from billing.schema import usage_records

    engine = create_engine(database_url)
    try:
        async with reading(engine) as db:
            return int((await db.execute(select(func.count()).select_from(usage_records))).scalar_one())
    finally:
        await engine.dispose()


@contextlib.contextmanager
def stack(
    *,
    postgres: bool,
    pin: bool,
    extra: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "gateway"),
    tree: Path | None = None,
) -> Iterator[tuple[Gateway, int]]:
    """Everything started; yields the gateway and the mock's port. pin: the gateway on core 0, all else elsewhere.
    program: what Python runs as the `farebox` command. tree: where the gateway's code is; None: where this one's is."""
    with contextlib.ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="fbx-hotpath-")))
        redis_url = exits.enter_context(valkey())
        url = exits.enter_context(own_postgres()) if postgres else f"sqlite+aiosqlite:///{folder}/bench.db"
        upstream, port = free_ports(2)
        others = ["taskset", "-c", f"1-{(os.cpu_count() or 2) - 1}"] if pin else []
        mock = subprocess.Popen([*others, sys.executable, "-m", "tests.bench.mock", str(upstream)])
        exits.callback(_stop, mock)
        wait_for(upstream)
        command = ["taskset", "-c", "0"] if pin else []
        command += [sys.executable, *program, "bench", "serve", "--json", "--port", str(port)]
        command += ["--upstream", f"http://127.0.0.1:{upstream}/v1"]
        told = {"DATABASE_URL": url, "REDIS_URL": redis_url, "FAREBOX_BOOTSTRAP_KEY": KEY, **(extra or {})}
        log = exits.enter_context((folder / "gateway.log").open("wb"))
        began = time.monotonic()
        if tree is not None:
            told["PYTHONPATH"] = str(tree)
        process = subprocess.Popen(command, env={**os.environ, **told}, stdout=log, stderr=log, cwd=tree)
        exits.callback(_stop, process)
        gateway = Gateway(process, port, url)
        _until_answered(gateway, folder / "gateway.log")
        gateway.start_wall_s, gateway.start_cpu_s = time.monotonic() - began, gateway.cpu_s
        yield gateway, upstream


def load(port: int, *args: object, pin: bool) -> dict[str, Any]:
    command = ["taskset", "-c", f"1-{(os.cpu_count() or 2) - 1}"] if pin else []
    command += [sys.executable, "-m", "tests.bench.load", str(port), "--key", KEY, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["errors"]:
        raise SystemExit(f"{found['errors']} errors; the first: {found['problem']}")
    return found


def measure(quick: bool, postgres: bool, pin: bool) -> dict[str, Any]:
    seconds, runs = (1.5, 1) if quick else (3.0, 3)
    figures: dict[str, Any] = {}
    with stack(postgres=postgres, pin=pin) as (gateway, upstream):
        figures["start_to_first_answer_s"] = gateway.start_wall_s
        figures["start_cpu_s"] = gateway.start_cpu_s
        time.sleep(3.0)  # what is loaded once the first requests have been taken, and the collector's last word
        figures["rss_idle_mb"] = gateway.rss_mb
        load(gateway.port, "--connections", 16, "--seconds", 1.0 if quick else 2.0, pin=pin)
        drained(gateway)
        for connections in (1, 64):
            found = [_requests(gateway, connections, seconds, pin) for _ in range(runs)]
            figures |= {f"c{connections}_{name}": statistics.median(f[name] for f in found) for name in found[0]}
        direct = load(upstream, "--connections", 8, "--rate", 50, "--seconds", seconds, pin=pin)
        low = load(gateway.port, "--connections", 8, "--rate", 50, "--seconds", seconds, pin=pin)
        figures["added_p50_ms_at_50_per_s"] = low["latency_ms_p50"] - direct["latency_ms_p50"]
        for dialect in ("chat", "messages"):
            word = "same" if dialect == "chat" else "translated"
            figures |= {f"{word}_{name}": value for name, value in _streams(gateway, dialect, quick, pin).items()}
        for streams, name in ((1, "one"), (100, "hundred")):
            model = ("--stream", "--model", "mock-n20-t20000-d1000", "--connections", streams, "--count", streams * 4)
            drained(gateway)
            through, alone = load(gateway.port, *model, pin=pin), load(upstream, *model, pin=pin)
            figures[f"first_token_added_ms_{name}"] = through["first_ms_p50"] - alone["first_ms_p50"]
        figures["rss_after_mb"] = gateway.rss_mb
    return figures


def _requests(gateway: Gateway, connections: int, seconds: float, pin: bool) -> dict[str, float]:
    """CPU a request with and without the shipping of usage rows to SQL, which goes on beside the load and after it: its
    cost a row is what the rest of the rows cost once the load has ended."""
    rows_before, cpu_before = gateway.rows(), gateway.cpu_s
    found = load(gateway.port, "--connections", connections, "--seconds", seconds, pin=pin)
    cpu_s, shipped = gateway.cpu_s - cpu_before, gateway.rows() - rows_before
    rows_then, cpu_then = gateway.rows(), gateway.cpu_s
    rows_now = drained(gateway)
    a_row_s = (gateway.cpu_s - cpu_then) / (rows_now - rows_then) if rows_now - rows_then > 200 else None
    path_s = None if a_row_s is None else (cpu_s - shipped * a_row_s) / found["answers"]
    known = {"per_s": found["per_s"], "p50_ms": found["latency_ms_p50"], "p99_ms": found["latency_ms_p99"]}
    known["cpu_ms"] = cpu_s / found["answers"] * 1000
    if a_row_s is not None and path_s is not None:
        known |= {"cpu_ms_without_shipping": path_s * 1000, "cpu_ms_to_ship_a_row": a_row_s * 1000}
    return known


def drained(gateway: Gateway) -> int:
    """Waits until no more rows come to SQL. Returns: how many there are."""
    rows = gateway.rows()
    for _ in range(240):
        time.sleep(0.5)
        last, rows = rows, gateway.rows()
        if rows == last:
            break
    return rows


def _streams(gateway: Gateway, dialect: str, quick: bool, pin: bool) -> dict[str, float]:
    count = 100 if quick else 200
    paced = ("--stream", "--dialect", dialect, "--model", "mock-n100-t100000-d20000")
    cpu_before = gateway.cpu_s
    found = load(gateway.port, *paced, "--connections", 100, "--count", count, "--seconds", 30, pin=pin)
    figures = {
        "us_a_chunk_paced": (gateway.cpu_s - cpu_before) / found["chunks"] * 1e6,
        "chunks_per_s_paced": found["chunks_per_s"],
    }
    burst = ("--stream", "--dialect", dialect, "--model", "mock-n200-t0-d0")
    cpu_before = gateway.cpu_s
    found = load(gateway.port, *burst, "--connections", 16, "--seconds", 1.5 if quick else 3.0, pin=pin)
    figures["us_a_chunk_burst"] = (gateway.cpu_s - cpu_before) / found["chunks"] * 1e6
    figures["chunks_per_s_burst"] = found["chunks_per_s"]
    return figures


def wait_for(port: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.01)
    raise SystemExit(f"nobody listens on port {port}")


def _until_answered(gateway: Gateway, log: Path) -> None:
    """Asks as a client would that cannot wait, until the first good answer."""
    from tests.bench.load import request_of

    request, deadline = request_of(gateway.port, KEY, "mock", "chat", False), time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if gateway.process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", gateway.port), 5.0) as client:
            client.sendall(request)
            if client.recv(65536).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.005)
    raise SystemExit(f"the gateway did not answer:\n{log.read_text(errors='replace')}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run of each: about 40 s")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--postgres", action="store_true", help="rows go to a PostgreSQL of its own, not to SQLite")
    parser.add_argument("--no-pin", action="store_true", help="leave the cores to the scheduler")
    args = parser.parse_args()
    figures = {name: round(value, 3) for name, value in measure(args.quick, args.postgres, not args.no_pin).items()}
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:38} {value:>12,.3f}")


if __name__ == "__main__":
    main()
