"""What a request takes by layer: `python -m tests.bench.calls [--seconds 3] [--functions 40] [--json]`.

Calls of Python functions are counted inside the gateway (cProfile) and are exact. Time is sampled there by the CPU
clock (SIGPROF), each sample for as much as the event loop's thread has worked since the last, C functions on the
account of whoever calls them; it is told as shares of the CPU that the same load took just before, unwatched. A clock
of real time would blame whoever is interrupted by another process. Rows are shipped to SQLite beside it."""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from tests.bench.hotpath import drained, load, stack

_WHERE = "FAREBOX_BENCH_PROFILE"

# By the end of the file's path, the first that fits.
LAYERS = (
    ("client's connection", ("gateway/ingress/connection.py", "gateway/ingress/guard.py", "uvicorn/")),
    ("client's connection", ("gateway/ingress/hotpath.py", "gateway/ingress/", "gateway/pipeline.py")),
    ("key", ("gateway/admission/keys.py", "gateway/admission/floods.py", "gateway/admission/minting.py")),
    ("limits: link, RESP", ("gateway/admission/link.py", "gateway/admission/store.py", "gateway/admission/cluster.py")),
    ("limits: estimate, script", ("gateway/admission/",)),
    ("plan", ("gateway/routing/", "gateway/desk.py", "billing/prices.py", "gateway/marking.py")),
    ("upstream connection", ("providers/transport/",)),
    ("upstream call", ("providers/base.py", "providers/auth/", "providers/hosts.py", "providers/openai")),
    ("upstream call", ("providers/cerebras.py", "providers/groq.py", "providers/wire/")),
    ("decoding, reading the answer", ("providers/", "gateway/relay.py")),
    ("the way of a chat", ("gateway/chat.py", "gateway/exchange.py", "gateway/answers.py")),
    ("settling", ("gateway/settlement.py", "gateway/metering.py", "billing/rating.py", "billing/usage.py")),
    ("journal", ("billing/journal.py",)),
    ("metrics", ("gateway/observe/",)),
    ("shipping", ("billing/", "sqlalchemy/", "aiosqlite/", "asyncpg/", "sqlite3/")),
    ("loop", ("asyncio/", "uvloop/", "contextlib.py", "concurrent/", "threading.py")),
)
OTHERS = "all else"
THREADS = "threads of the database and of fsync"
RUNNER = "asyncio/runners.py"
Function = tuple[str, str]


def layer_of(file: str) -> str:
    for layer, places in LAYERS:
        if any(place in file for place in places):
            return layer
    return OTHERS


class Watch:
    """Inside the gateway: begins at a signal, ends at the next one and leaves what it saw in a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._profile = cProfile.Profile(builtins=False)
        self._seen: defaultdict[Function, float] = defaultdict(float)
        self._at_s = 0.0

    def count(self, *_: object) -> None:
        self._profile.enable()
        signal.signal(signal.SIGUSR1, self._counted)

    def _counted(self, *_: object) -> None:
        self._profile.disable()
        self._profile.create_stats()
        entries: dict[tuple[str, int, str], tuple[int, ...]] = self._profile.stats  # type: ignore[attr-defined]
        self._leave("calls", [(file, _name(name), entry[1]) for (file, _, name), entry in entries.items()])

    def sample(self, *_: object) -> None:
        self._at_s = time.thread_time()
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
        signal.signal(signal.SIGUSR2, self._sampled)

    def _take(self, _: int, frame: FrameType | None) -> None:
        now_s = time.thread_time()
        if frame is not None:
            code, caller = frame.f_code, frame.f_back
            # One that has just been called by the loop: what took the time was the loop itself, which is written in C.
            begins = frame.f_lasti <= 2 and caller is not None and caller.f_code.co_filename.endswith(RUNNER)
            self._seen[(RUNNER, "run") if begins else (code.co_filename, code.co_name)] += now_s - self._at_s
        self._at_s = now_s

    def _sampled(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._leave("samples", [(file, name, seconds) for (file, name), seconds in self._seen.items()])

    def _leave(self, name: str, rows: list[tuple[str, str, float]]) -> None:
        part = self._folder / f"{name}.part"
        part.write_text(json.dumps(rows))
        part.rename(self._folder / name)


def _name(name: str) -> str:
    return name.rpartition(".")[2]


def watched() -> None:
    """The `farebox` command, counted between two SIGUSR1 and sampled between two SIGUSR2."""
    from gateway.cli import main as farebox

    watch = Watch(Path(os.environ[_WHERE]))
    signal.signal(signal.SIGUSR1, watch.count)
    signal.signal(signal.SIGUSR2, watch.sample)
    farebox()


def measure(connections: int, seconds: float) -> dict[str, Any]:
    asked = ("--connections", connections, "--seconds", seconds)
    with tempfile.TemporaryDirectory(prefix="fbx-calls-") as name:
        folder, program = Path(name), ("-m", "tests.bench.calls", "--gateway")
        with stack(postgres=False, pin=True, extra={_WHERE: name}, program=program) as (gateway, _):
            pid = gateway.process.pid
            load(gateway.port, "--connections", connections, "--seconds", 1.5, pin=True)
            drained(gateway)
            before, loop_before = gateway.cpu_s, gateway.loop_cpu_s
            answers = load(gateway.port, *asked, pin=True)["answers"]
            drained(gateway)
            whole_us = (gateway.cpu_s - before) / answers * 1e6
            loop_us = (gateway.loop_cpu_s - loop_before) / answers * 1e6
            answered, found = {}, {}
            for what, signum in (("samples", signal.SIGUSR2), ("calls", signal.SIGUSR1)):
                os.kill(pid, signum)
                answered[what] = load(gateway.port, *asked, pin=True)["answers"]
                drained(gateway)
                os.kill(pid, signum)
                deadline = time.monotonic() + 60
                while not (folder / what).exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
                found[what] = json.loads((folder / what).read_text())
    calls: Counter[Function] = Counter()
    for file, function, count in found["calls"]:
        calls[file, function] += count / answered["calls"]
    samples = {(file, function): float(count) for file, function, count in found["samples"]}
    return told(calls, samples, loop_us, whole_us)


def told(
    calls: Mapping[Function, float], samples: Mapping[Function, float], loop_us: float, whole_us: float
) -> dict[str, Any]:
    sampled_s = sum(samples.values())
    layers: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    functions: defaultdict[Function, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (file, name), each in calls.items():
        layers[layer_of(file)][0] += each
        functions[file, name][0] += each
    for (file, name), seen in samples.items():
        us = seen / sampled_s * loop_us
        layers[layer_of(file)][1] += us
        functions[file, name][1] += us
    layers[THREADS][1] = whole_us - loop_us
    return {
        "cpu_us": round(whole_us, 1),
        "calls": round(sum(calls.values()), 1),
        "layers": [
            (name, round(each, 1), round(us, 1))
            for name, (each, us) in sorted(layers.items(), key=lambda row: -row[1][1])
        ],
        "functions": [
            (round(us, 2), round(each, 2), layer_of(file), f"{'/'.join(Path(file).parts[-3:])} {name}")
            for (file, name), (each, us) in sorted(functions.items(), key=lambda row: (-row[1][1], -row[1][0]))
        ],
    }


def main() -> None:
    if sys.argv[1:2] == ["--gateway"]:
        del sys.argv[1]
        return watched()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--functions", type=int, default=0, help="how many of the dearest functions are listed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.connections, args.seconds)
    if args.json:
        print(json.dumps(found))
        return None
    print(f"{found['cpu_us']:.0f} us of CPU a request, its row shipped; {found['calls']:.0f} calls of Python functions")
    for layer, calls, us in found["layers"]:
        print(f"{layer:32} {calls:8.1f} calls {us:8.1f} us")
    for us, calls, layer, name in found["functions"][: args.functions]:
        print(f"{us:8.2f} us {calls:7.2f} x  {layer:28} {name}")
    return None


if __name__ == "__main__":
    main()
