"""New code and new settings under traffic: no stream is cut, no request fails, whichever way the change is made."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from gateway.config import load
from tests.e2e.test_crash import prepare, written
from tests.emulators.openai import OpenAIEmulator
from tests.services import free_ports


@asynccontextmanager
async def serving(config: Path, url: str, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`farebox serve`, up when it says so. Leaving kills it, if nobody has stopped it before."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "--config", str(config), *flags, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await ready(url, process)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def ready(url: str, process: asyncio.subprocess.Process) -> None:
    async with httpx.AsyncClient() as http, asyncio.timeout(90):
        while True:
            assert process.returncode is None, "the gateway ended while starting"
            try:
                if (await http.get(f"{url}/health/readiness")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


class Traffic:
    """Long streams that are open throughout, and short requests one after another, each on a connection of its own."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self.streams: list[asyncio.Task[bool]] = []
        self.open = 0
        self.short: Counter[str] = Counter()
        self._stop = asyncio.Event()
        self._asking: list[asyncio.Task[None]] = []

    async def start(self, streams: int, words: int) -> None:
        self.streams = [asyncio.create_task(self._stream(words)) for _ in range(streams)]
        self._asking = [asyncio.create_task(self._ask()) for _ in range(2)]
        async with asyncio.timeout(60):
            while self.open < streams:
                assert not any(task.done() for task in self.streams)
                await asyncio.sleep(0.01)

    async def finish(self) -> list[bool]:
        """Whether each stream was read to its end."""
        ended = list(await asyncio.gather(*self.streams))
        self._stop.set()
        await asyncio.gather(*self._asking)
        return ended

    async def _stream(self, words: int) -> bool:
        script = f"x-script: long={words} pace_ms=20"
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": script}]}
        async with (
            httpx.AsyncClient(timeout=60) as http,
            http.stream("POST", self._url, json=body, headers=self._headers) as answer,
        ):
            assert answer.status_code == 200
            said = b""
            async for piece in answer.aiter_bytes():
                self.open += not said
                said += piece
        return said.endswith(b"data: [DONE]\n\n")

    async def _ask(self) -> None:
        body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        while not self._stop.is_set():
            async with httpx.AsyncClient(timeout=30) as http:
                try:
                    answer = await http.post(self._url, json=body, headers=self._headers)
                    self.short[str(answer.status_code)] += 1
                except httpx.TransportError as error:
                    self.short[type(error).__name__] += 1
            await asyncio.sleep(0.05)  # the point is that some are always under way, not how many


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIEmulator]:
    async with OpenAIEmulator() as emulator:
        yield emulator


async def knows(url: str, key: str, alias: str, times: int) -> None:
    """Returns when so many new connections in a row have found the alias: whoever is behind the port."""
    found = 0
    async with asyncio.timeout(90):
        while found < times:
            try:
                async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http:
                    listed = [each["id"] for each in (await http.get(f"{url}/v1/models")).json()["data"]]
            except httpx.TransportError:  # in the queue of a socket that has just closed; `Traffic` counts those
                listed = []
            found = found + 1 if alias in listed else 0
            await asyncio.sleep(0.01)


async def shared_out(port: int, workers: set[int]) -> None:
    """Returns when connections, opened a few at a time and kept, lie with all workers alike: of 40, or of 200."""
    opened: list[asyncio.StreamWriter] = []

    def held() -> list[int]:
        all_ = [psutil.Process(pid).net_connections("tcp") for pid in workers]
        return [sum(one.status == "ESTABLISHED" and one.laddr.port == port for one in its) for its in all_]

    try:
        async with asyncio.timeout(90):
            while len(opened) < 40 or min(held()) < 0.8 * len(opened) / len(workers):
                assert len(opened) < 200, f"connections heap up at one worker: {held()}"
                opened += [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(4)]
                while sum(held()) < len(opened):  # The kernel opens them before anybody takes them.
                    await asyncio.sleep(0.001)
    finally:
        for writer in opened:
            writer.close()


async def test_workers_are_replaced_with_new_settings_and_no_stream_is_cut(
    tmp_path: Path, sqlite_template: Path, redis_url: str, upstream: OpenAIEmulator
) -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    database = f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}"
    config = written(tmp_path, upstream.url, database, redis_url, port)
    config.write_text(config.read_text().replace("[server]", "[server]\ndrain_s = 600.0"))
    key = await prepare(load(config, {}))
    async with serving(config, url, "--workers", "2") as process:

        def workers() -> set[int]:
            while True:
                assert process.returncode is None, "the gateway ended"
                with suppress(psutil.NoSuchProcess):  # one ended while they were listed
                    return {child.pid for child in psutil.Process(process.pid).children()}

        before = workers()
        assert len(before) == 2
        await shared_out(port, before)
        traffic = Traffic(f"{url}/v1/chat/completions", key)
        await traffic.start(streams=6, words=300)
        good = config.read_text()
        config.write_text("this is no TOML [")
        os.kill(process.pid, signal.SIGHUP)
        async with asyncio.timeout(60):
            while len(workers()) <= 2:  # the one that will not start
                await asyncio.sleep(0.01)
            while workers() != before:
                await asyncio.sleep(0.01)
        config.write_text(good.replace('alias = "echo"', 'alias = "parrot"') + good[good.index("[[models]]") :])
        os.kill(process.pid, signal.SIGHUP)
        await knows(url, key, "parrot", times=20)
        assert not any(stream.done() for stream in traffic.streams)
        assert all(await traffic.finish())
        assert set(traffic.short) == {"200"}, traffic.short
        assert traffic.short["200"] > 5
        async with asyncio.timeout(60):
            while workers() & before or len(workers()) != 2:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_a_hang_up_while_workers_start_ends_nobody(
    tmp_path: Path, sqlite_template: Path, redis_url: str, upstream: OpenAIEmulator
) -> None:
    [port] = free_ports(1)
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    database = f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}"
    config = written(tmp_path, upstream.url, database, redis_url, port)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "--config", str(config), "--workers", "2",
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            while not psutil.Process(process.pid).children():
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        await ready(f"http://127.0.0.1:{port}", process)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_second_process_takes_the_port_over_while_the_first_drains(
    tmp_path: Path, sqlite_template: Path, redis_url: str, upstream: OpenAIEmulator
) -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    database = f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}"
    config = written(tmp_path, upstream.url, database, redis_url, port)
    config.write_text(config.read_text().replace("[server]", "[server]\ndrain_s = 600.0"))
    config.write_text(config.read_text().replace("[server]", "[server]\nreuse_port = true"))
    key = await prepare(load(config, {}))
    async with serving(config, url) as old:
        traffic = Traffic(f"{url}/v1/chat/completions", key)
        await traffic.start(streams=6, words=300)
        new_config = tmp_path / "new.toml"
        new_config.write_text(config.read_text() + config.read_text()[config.read_text().index("[[models]]") :].replace(
            'alias = "echo"', 'alias = "parrot"'))  # fmt: skip
        new = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", "--config", str(new_config), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(90):
                while True:  # it is up when some connections meet it
                    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http:
                        if "parrot" in (await http.get(f"{url}/v1/models")).text:
                            break
                    await asyncio.sleep(0.01)
            old.send_signal(signal.SIGTERM)
            await knows(url, key, "parrot", times=20)
            assert all(await traffic.finish())
            assert await asyncio.wait_for(old.wait(), 60) == 0
            # A connection may lie in the old socket's queue in the moment that it closes; no request is lost in work.
            assert set(traffic.short) <= {"200", "ReadError", "ConnectError"}, traffic.short
            assert sum(traffic.short.values()) - traffic.short["200"] <= 2, traffic.short
        finally:
            new.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(new.wait(), 60) == 0
