"""The local engine: fetch its model, start it as a process of its own, keep it running. Speaks to it by HTTP alone."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.config import LocalSettings, child_environment
from gateway.embedded.process import StartFailed, Supervisor, spawn, tail

READY_WITHIN_S = 300.0
"""Weights of a large model come from a slow disk."""
STOP_WITHIN_S = 35.0


class PullEvent(Struct, frozen=True):
    """One line of `python -m local_backend.catalogue pull --json`. done, total: bytes."""

    event: str
    done: int = 0
    total: int | None = None
    note: str = ""
    path: str = ""
    message: str = ""


def can_run() -> bool:
    """Whether the `local` extra is installed. Looks for torch without importing it."""
    return importlib.util.find_spec("torch") is not None


async def pull(model: str, data_dir: Path, progress: Callable[[PullEvent], None]) -> Path:
    """Fetch a catalogue model unless it is there. Returns: its folder. Raises: StartFailed with every source's answer.

    A process of its own: whoever imports the engine imports torch."""
    argv = [sys.executable, "-m", "local_backend.catalogue", "pull", model, "--data", str(data_dir), "--json"]
    process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE, env=child_environment({}))
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    last = PullEvent("error", message="the download ended without a word")
    try:
        async for line in process.stdout:
            last = msgspec.json.decode(line, type=PullEvent)
            progress(last)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        said = (await errors).decode(errors="replace").strip()
    if code != 0 or last.event != "done":
        raise StartFailed(f"the model {model!r} cannot be had: {last.message or said[-1000:]}")
    return Path(last.path)


class LocalEngine:
    """`start`, hand out `base_url`, `stop`."""

    def __init__(self, settings: LocalSettings, data_dir: Path, key: str) -> None:
        self._model = settings.model
        self._served_name = settings.served_name
        self._data_dir = data_dir
        self._key = key
        self._port = settings.port or free_port()
        self._log_path = data_dir / "logs" / "engine.log"
        self._supervisor = Supervisor("engine", self._start_child, self._wait_ready, log_path=self._log_path)

    @property
    def base_url(self) -> str:
        """With /v1, as OpenAI clients take it."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def supervisor(self) -> Supervisor:
        return self._supervisor

    async def start(self) -> None:
        """Raises: StartFailed."""
        await self._supervisor.start()

    async def stop(self) -> None:
        await self._supervisor.stop(STOP_WITHIN_S)

    async def _start_child(self) -> Process:
        argv = [sys.executable, "-m", "local_backend", self._model, "--data", str(self._data_dir)]
        argv += ["--served-name", self._served_name]
        # The same port after a restart: the gateway keeps the address it was given.
        argv += ["--host", "127.0.0.1", "--port", str(self._port), "--die-with-parent"]
        # By environment, never by argument: every user of a machine can read the arguments of its processes.
        return await spawn(argv, log_path=self._log_path, environ=child_environment({"FAREBOX_ENGINE_KEY": self._key}))

    async def _wait_ready(self, process: Process) -> None:
        until = time.monotonic() + READY_WITHIN_S
        while process.returncode is None and time.monotonic() < until:
            if await healthy(self._port):
                return
            await asyncio.sleep(0.05)
        why = "ended" if process.returncode is not None else f"gave no answer within {READY_WITHIN_S:.0f} s"
        raise StartFailed(f"the local engine {why}; its log {self._log_path} ends:\n{tail(self._log_path)}")


async def healthy(port: int) -> bool:
    """Whether the engine answers 200 to GET /health: the model is loaded and its loop turns."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /health HTTP/1.1\r\nhost: engine\r\nconnection: close\r\n\r\n")
        await writer.drain()
        status = await asyncio.wait_for(reader.readline(), 5.0)
        return status.split(b" ")[1:2] == [b"200"]
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
