"""The engine as a process: signals, a dying parent, a dying core, a full queue, a key, a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_backend import client
from local_backend.generate import Delta
from local_backend.http_face import Exchange
from tests.local_backend.support import (
    ROOT,
    EngineProcess,
    children_of,
    is_alive,
    make_tiny_model,
    running_engine,
    settings,
    wait_until,
)

ENDLESS = {"model": "tiny", "prompt": "x", "max_tokens": 100_000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a context long enough that no answer ends while a test looks."""
    folder = tmp_path_factory.mktemp("slow") / "tiny"
    make_tiny_model(folder, max_position_embeddings=100_000)
    return folder


def test_sigterm_lets_streams_end_and_exits_with_zero(slow: Path) -> None:
    with running_engine(slow) as engine:
        core = children_of(engine.process.pid)
        body = ENDLESS | {"max_tokens": 400}
        with httpx.stream("POST", engine.url + "/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            engine.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert engine.process.wait(timeout=20) == 0
        assert not any(map(is_alive, core))


def test_sigterm_waits_no_longer_than_drain_s(slow: Path) -> None:
    with running_engine(slow, "--drain-s", "1") as engine:
        with httpx.stream("POST", engine.url + "/v1/completions", json=ENDLESS, timeout=60) as response:
            lines = response.iter_lines()  # kept: a dropped generator closes the response
            next(lines)
            started = time.monotonic()
            assert engine.stop() == 0
        assert time.monotonic() - started < 25, "the default is 30 s"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_takes_the_engine_with_it(slow: Path, number: int) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"argv = [sys.executable, '-m', 'local_backend', {str(slow)!r}, '--port', '0', '--die-with-parent']\n"
        "p = subprocess.Popen(argv)\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = 0
        for line in parent.stdout:
            if line.strip().isdigit():
                pid = int(line)
            elif json.loads(line)["event"] == "ready":
                break
        family = [pid, *children_of(pid)]
        assert len(family) == 2
        parent.send_signal(number)
        parent.wait()
        wait_until(lambda: not any(map(is_alive, family)))


def test_a_killed_front_takes_the_core_with_it(slow: Path) -> None:
    with running_engine(slow) as engine:
        (core,) = children_of(engine.process.pid)
        engine.process.kill()
        wait_until(lambda: not is_alive(core))


def test_a_killed_core_fails_what_ran_and_is_started_again(slow: Path) -> None:
    with running_engine(slow) as engine, httpx.Client(base_url=engine.url, timeout=60) as http:
        (core,) = children_of(engine.process.pid)
        with http.stream("POST", "/v1/completions", json=ENDLESS) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(core, signal.SIGKILL)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_restarted"
        refused = http.post("/v1/completions", json=ENDLESS)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_not_ready"
        assert refused.headers["retry-after"]
        assert http.get("/health/live").status_code == 200
        assert http.get("/health/ready").status_code == 503
        wait_until(lambda: http.get("/health/ready").status_code == 200, 60)
        assert "num_requests_running" not in http.get("/metrics").text, "what ran in the dead core runs no more"
        reply = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 2})
        assert reply.status_code == 200
        assert 'farebox:engine_core_restarts_total{model_name="tiny"} 1.0' in http.get("/metrics").text


async def test_closing_ends_a_core_that_is_being_started_or_started_again(
    slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_RESTART_DELAY_S", 1000.0)
    monkeypatch.setattr(client, "LAST_RESTART_DELAY_S", 1000.0)
    given = settings(model=str(slow))
    core = client.CoreClient(given, str(slow))
    running = asyncio.create_task(core.run())
    await asyncio.sleep(0)  # the process is being made; nobody knows it yet
    assert core.core_pid is None
    await core.close()
    await asyncio.wait_for(running, 60)
    core = client.CoreClient(given, str(slow))
    running = asyncio.create_task(core.run())
    async with asyncio.timeout(60):
        while core.core_pid is None:
            await asyncio.sleep(0.01)
        os.kill(core.core_pid, signal.SIGKILL)
        while not core.restarts:
            await asyncio.sleep(0.01)
    await core.close()
    await asyncio.wait_for(running, 60)


async def test_an_answer_that_the_server_gives_up_is_closed() -> None:
    """As at the end of a drain: the task is cancelled while it waits for the next token."""
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[Delta, None]:
        try:
            await asyncio.Event().wait()
            yield Delta(0, "", [], None)
        finally:
            closed.set()

    async def silent() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def nowhere(message: dict[str, Any]) -> None: ...

    async def answer() -> None:
        exchange = Exchange({"method": "POST", "path": "/", "headers": []}, silent, nowhere, 1)
        async with contextlib.aclosing(exchange.until_gone(endless())) as deltas:
            async for _ in deltas:
                pass

    task = asyncio.create_task(answer())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert closed.is_set()


def test_a_core_without_progress_is_ended_by_the_watchdog(slow: Path) -> None:
    with running_engine(slow, "--watchdog-s", "1") as engine, httpx.Client(base_url=engine.url, timeout=60) as http:
        (core,) = children_of(engine.process.pid)
        with http.stream("POST", "/v1/completions", json=ENDLESS) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(core, signal.SIGSTOP)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_restarted"
        wait_until(lambda: http.get("/health/ready").status_code == 200, 60)
        assert children_of(engine.process.pid) != [core]


def test_a_full_queue_is_refused_at_once_and_a_free_place_is_taken(slow: Path) -> None:
    argv = ("--max-running", "1", "--max-waiting", "1")
    with running_engine(slow, *argv) as engine, httpx.Client(base_url=engine.url, timeout=60) as http:
        with http.stream("POST", "/v1/completions", json=ENDLESS) as running:
            lines = running.iter_lines()  # kept: a dropped generator closes the response
            next(lines)
            small = {"model": "tiny", "prompt": "x", "max_tokens": 2}
            waiting: list[int] = []
            thread = threading.Thread(
                target=lambda: waiting.append(
                    httpx.post(engine.url + "/v1/completions", json=small, timeout=60).status_code
                )
            )
            thread.start()
            wait_until(lambda: 'num_requests_waiting{model_name="tiny"} 1.0' in http.get("/metrics").text)
            refused = http.post("/v1/completions", json=small)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "queue_full"
            assert refused.headers["retry-after"]
            assert waiting == []
        thread.join()
        assert waiting == [200], "the running client left, so the one in the queue had its turn"


def test_key_is_asked_for_where_one_is_set(slow: Path) -> None:
    with running_engine(slow, env={"FAREBOX_ENGINE_KEY": "s3cret"}) as engine:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 1}

        def status(headers: dict[str, str]) -> int:
            return httpx.post(engine.url + "/v1/completions", json=body, headers=headers, timeout=60).status_code

        assert status({}) == 401
        assert status({"authorization": "Bearer wrong"}) == 401
        assert status({"authorization": "Bearer s3cret"}) == 200
        assert httpx.get(engine.url + "/health").status_code == 200
        command = Path(f"/proc/{engine.process.pid}/cmdline").read_text()
        assert "s3cret" not in command
        for child in children_of(engine.process.pid):
            assert "s3cret" not in Path(f"/proc/{child}/cmdline").read_text()


def test_unix_socket_is_private(slow: Path, tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    path.write_text("a file of somebody's")
    engine = EngineProcess(str(slow), "--uds", str(path))
    assert engine.process.wait(timeout=60) == 2
    assert path.read_text() == "a file of somebody's"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # and nobody there any more
    with running_engine(slow, "--uds", str(path)):
        assert path.stat().st_mode & 0o777 == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://engine") as http:
            assert http.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_text_is_whole_even_if_the_model_writes_noise(slow: Path) -> None:
    body: dict[str, Any] = {
        "model": "tiny",
        "prompt": "é🙂",
        "max_tokens": 60,
        "seed": 1,
        "temperature": 1.5,
        "ignore_eos": True,
    }
    with running_engine(slow) as engine:
        whole = httpx.post(engine.url + "/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
        with httpx.stream("POST", engine.url + "/v1/completions", json=body | {"stream": True}, timeout=60) as response:
            events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
            pieces = [event["choices"][0]["text"] for event in events]
        assert "".join(pieces) == whole
        assert "\ufffd" in whole, "random bytes are hardly ever whole characters"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no model given"),
        (["no-such-model"], "no model 'no-such-model'"),
        (["TINY", "--port", "http"], "port"),
        (["TINY", "--token-budget", "0"], "token_budget"),
        (["TINY", "--kv-cache-bytes", "lots"], "not a size"),
        (["TINY", "--kv-cache-bytes", "1KiB", "--max-model-len", "512"], "cannot hold one context"),
        (["TINY", "--device", "cuda"], "no CUDA device"),
    ],
)
def test_a_bad_start_ends_with_two_and_says_why(tiny: Path, argv: list[str], said: str) -> None:
    import torch

    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU here, so asking for it is no error")
    engine = EngineProcess(
        *[str(tiny) if a == "TINY" else a for a in argv], *(["--port", "0"] if "--port" not in argv else [])
    )
    try:
        assert engine.process.wait(timeout=60) == 2
    finally:
        engine.process.kill()
    wait_until(lambda: said in "".join(engine.errors))


def test_a_truncated_checkpoint_stops_the_start(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    engine = EngineProcess(str(tmp_path), "--port", "0")
    assert engine.process.wait(timeout=60) == 2
    wait_until(lambda: "cannot read" in "".join(engine.errors))


def test_no_torch_in_the_front_and_the_catalogue() -> None:
    code = (
        "import sys, local_backend.server, local_backend.__main__, local_backend.catalogue, local_backend.scheduler\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'torch came along'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
