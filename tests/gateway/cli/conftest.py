"""The `farebox` command, and `farebox up` as a process of its own for the tests of this folder."""

import asyncio
import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from gateway import cli
from tests.emulators.server import Emulator

ROOT = Path(__file__).parents[3]
READY_WITHIN_S = 90.0


def environment(**extra: str) -> dict[str, str]:
    """Ours, without what would change the settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FAREBOX_", "OPENAI_", "ANTHROPIC_", "AWS_", "GROQ_", "GEMINI_", "GOOGLE_", "AZURE_"))
        and name not in ("DATABASE_URL", "REDIS_URL", "PORT", "LOG_LEVEL")
    }
    return {**kept, "PYTHONPATH": str(ROOT), **extra}


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def farebox(*arguments: str, cwd: Path, check: int | None = 0, **environ: str) -> Done:
    """Run one command to its end, in this process: what it imports is loaded once for all tests.

    check: the exit code that is expected, None for any."""
    out, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(os, "environ", environment(**environ))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                code = cli.run(arguments)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
    done = Done(code, out.getvalue(), errors.getvalue())
    assert check is None or code == check, done
    return done


def farebox_json(*arguments: str, cwd: Path, check: int | None = 0, **environ: str) -> Any:
    return json.loads(farebox(*arguments, "--json", cwd=cwd, check=check, **environ).stdout)


class Up:
    """A running `farebox up`. Without the local model, unless told: it starts in two seconds."""

    def __init__(self, folder: Path, *flags: str, **environ: str) -> None:
        self.folder = folder
        self.errors = folder / "up.err"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "up", "--port", "0", *flags],
                cwd=folder,
                env=environment(**environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,  # `select` sees only what no buffer of ours has taken.
            )
        self.said: list[str] = []
        self.ready: dict[str, Any] = {}

    def wait_ready(self) -> "Up":
        until = time.monotonic() + READY_WITHIN_S
        assert self.process.stdout is not None
        while time.monotonic() < until:
            readable, _, _ = select.select([self.process.stdout], [], [], 1.0)
            if not readable:
                continue
            line = self.process.stdout.readline().decode()
            if not line:
                break
            self.said.append(line)
            if line.startswith("{"):
                self.ready = json.loads(line)
                return self
        raise AssertionError(f"not ready: {self.errors.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()


@contextlib.contextmanager
def emulated(*emulators: Emulator) -> Iterator[None]:
    """Providers that answer while a test of this folder, which has no event loop, runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="emulators")
    thread.start()

    async def enter() -> contextlib.AsyncExitStack:
        stack = contextlib.AsyncExitStack()
        for each in emulators:
            await stack.enter_async_context(each)
        return stack

    try:
        stack = asyncio.run_coroutine_threadsafe(enter(), loop).result(30)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def token_of(up: "Up", *roles: str) -> dict[str, str]:
    """An API token for each role, made by the owner who takes the link that `up` prints."""
    link = up.ready["dashboard"].rpartition("=")[2]
    with httpx.Client(base_url=f"{up.ready['base_url']}/admin/v1", timeout=30) as client:
        csrf = client.post("/auth/link", json={"token": link}).json()["csrf"]
        headers = {"X-CSRF-Token": csrf}
        return {
            role: client.post("/tokens", json={"name": role, "role": role}, headers=headers).json()["secret"]
            for role in roles
        }


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `farebox up` in a folder of its own; ended after the test, whatever it did."""
    started: list[Up] = []

    def begin(*flags: str, **environ: str) -> Up:
        started.append(Up(tmp_path, *flags, **environ))
        return started[-1]

    yield begin
    for up in started:
        up.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One for all tests of a module: those that only ask and add."""
    up = Up(tmp_path_factory.mktemp("up"), "--no-local")
    try:
        yield up.wait_ready()
    finally:
        up.stop()
