"""The tools that figures come from: a load that miscounts makes every figure wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.bench.hotpath import load, wait_for
from tests.bench.stages import STAGES, between
from tests.services import free_ports


@pytest.fixture
def upstream() -> Iterator[int]:
    [port] = free_ports(1)
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.mock", str(port)])
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def test_every_answer_and_every_chunk_is_counted_once(upstream: int) -> None:
    whole = load(upstream, "--connections", 8, "--count", 200, pin=False)
    assert (whole["answers"], whole["errors"], whole["chunks"]) == (200, 0, 0)
    model = ("--stream", "--model", "mock-n50-t1000-d100")
    streamed = load(upstream, *model, "--connections", 4, "--count", 12, pin=False)
    # 50 chunks, then one that ends the answer, one with its usage, and [DONE].
    assert (streamed["answers"], streamed["errors"], streamed["chunks"]) == (12, 0, 12 * 53)
    assert streamed["first_ms_p50"] < streamed["latency_ms_p50"]
    paced = load(upstream, "--rate", 200, "--connections", 40, "--count", 40, pin=False)
    assert (paced["answers"], paced["errors"]) == (40, 0)


def test_an_answer_in_another_dialect_is_no_answer(upstream: int) -> None:
    command = [sys.executable, "-m", "tests.bench.load", str(upstream), "--dialect", "messages", "--count", "3"]
    done = subprocess.run([*command, "--stream"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["answers"], found["errors"]) == (0, 3)
    assert "chatcmpl-mock" in found["problem"]  # where the answer is cut depends on how it came


def test_a_request_that_shared_the_gateway_counts_for_no_stage() -> None:
    alone = [(name, at * 10_000) for at, name in enumerate(STAGES)]
    its_settlement = [("limits asked", 95_000), ("limits told", 97_000)]
    shared = [(name, 200_000 + at * 10_000) for at, name in enumerate(("in", "limits asked", "in", *list(STAGES)[1:]))]
    found = between([*shared, *alone, *its_settlement])
    assert found.pop("requests") == 2
    assert found == dict.fromkeys(list(STAGES)[1:], 10.0) | {"whole": 90.0}
    with pytest.raises(SystemExit):
        between(shared[:2])
