"""Tensor parallelism: an engine of two processes, each with half of every matrix, says what one process says."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_backend.errors import ModelUnavailable
from local_backend.messages import AddRequest, Sampling
from local_backend.model_runner import ModelRunner
from local_backend.parallel import Company, Ranks
from local_backend.rank import lead
from local_backend.tokenizer import Tokenizer
from tests.local_backend.support import (
    EngineProcess,
    children_of,
    is_alive,
    make_engine,
    make_tiny_model,
    running_engine,
    settings,
    wait_until,
)

pytestmark = pytest.mark.timeout(400)  # each engine here is three processes, two of which import torch

TWO = ("--tensor-parallel", "2", "--dtype", "float32", "--kv-cache-bytes", "16MiB", "--served-name", "shared")
ENDLESS = {"model": "shared", "prompt": "x", "max_tokens": 50_000, "ignore_eos": True, "stream": True}
PROMPTS = ["The same words again. " * 40, "a", "bb", "A third one, longer", "The same words again. " * 40]


def make_shared(folder: Path) -> Path:
    """Biases are added by the first rank alone; an even vocabulary, so that the head is shared out, too."""
    context = {"max_position_embeddings": 60_000, "vocab_size": 260}
    make_tiny_model(folder, seed=2, hidden_size=64, num_attention_heads=4, attention_bias=True, **context)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shared(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[EngineProcess]:
    with running_engine(folder, *TWO, "--watchdog-s", "3") as engine:
        yield engine


def alone(folder: Path, tokens: int, **changes: Any) -> list[list[float]]:
    """Logprobs of greedy answers by one process."""
    engine = make_engine(folder, **changes)
    tokenizer = Tokenizer(folder)
    found: list[list[float]] = [[] for _ in PROMPTS]
    for i, prompt in enumerate(PROMPTS):
        sampling = Sampling(max_tokens=tokens, temperature=0.0, logprobs=0)
        engine.take(AddRequest(i, tokenizer.encode(prompt, special=True), sampling))
    while engine.has_work:
        for token in engine.step().tokens:
            assert token.logprobs is not None
            found[token.id].append(token.logprobs.chosen)
    return found


def shared(url: str, tokens: int) -> list[list[float]]:
    """The same by the engine at `url`; its last prompt comes from the cache."""
    found = []
    for prompt in (PROMPTS[:4], PROMPTS[4]):
        body = {"model": "shared", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 0}
        reply = httpx.post(f"{url}/v1/completions", json=body | {"ignore_eos": True}, timeout=120)
        assert reply.status_code == 200, reply.text
        found += [choice["logprobs"]["token_logprobs"] for choice in reply.json()["choices"]]
    return found


def test_two_processes_say_what_one_says(folder: Path, two: EngineProcess) -> None:
    for ours, theirs in zip(shared(two.url, 12), alone(folder, 12), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_int8_is_shared_out_too(folder: Path) -> None:
    """Each rank rounds its half of the inputs by a scale of its own, so nearly equal."""
    with running_engine(folder, *TWO, "--quantization", "int8", "--speculation", "ngram") as engine:
        ours = [answer[0] for answer in shared(engine.url, 1)]
    assert ours == pytest.approx([answer[0] for answer in alone(folder, 1, quantization="int8")], abs=0.3)


def test_a_rank_that_dies_or_stands_still_ends_all_and_all_are_started_again(two: EngineProcess) -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP):  # of the second the watchdog hears
        with httpx.Client(base_url=two.url, timeout=120) as http:
            wait_until(lambda: http.get("/health/ready").status_code == 200, 120)
            (core,) = children_of(two.process.pid)
            (rank,) = children_of(core)
            with http.stream("POST", "/v1/completions", json=ENDLESS) as response:
                lines = response.iter_lines()
                next(lines)
                os.kill(rank, number)
                last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_restarted"
        wait_until(lambda: not is_alive(core) and not is_alive(rank), 60)  # noqa: B023


def test_what_cannot_be_shared_out_is_refused(folder: Path) -> None:
    assert Ranks(1, 2).share(8, "heads") == 4
    with pytest.raises(ModelUnavailable, match="4 heads cannot be shared out among 3 ranks"):
        lead(folder, settings(tensor_parallel=3))
    assert lead(folder, settings()).ranks.size == 1
    company = Company()
    company.ranks = Ranks(0, 2)
    with pytest.raises(ModelUnavailable, match="tensor_parallel goes neither"):
        ModelRunner(folder, settings(tensor_parallel=2, batch_invariant=True), company)
