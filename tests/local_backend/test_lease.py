"""The engine as a replica: it joins when it can answer, and leaves before it stops answering."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

import local_backend.lease
from local_backend.lease import _answers, _keep_when_ready, lease_of
from tests.local_backend.support import ROOT, running_engine

WITHIN_S = 60
QUIET_S = 1.0


class Door(BaseHTTPRequestHandler):
    """A gateway's, as far as an engine sees of it."""

    asked: ClassVar[list[tuple[str, str, str, Any]]] = []
    answered: ClassVar[list[str]] = []
    news = threading.Condition()
    slow: ClassVar[threading.Event | None] = None
    """Until it is set, renewals have no answer."""
    odd: ClassVar[list[bytes]] = []
    """Said first."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        with self.news:
            self.asked.append(
                (self.command, self.path, self.headers["authorization"], json.loads(body) if body else None)
            )
            self.news.notify_all()
        if self.command == "PUT" and self.slow is not None:
            assert self.slow.wait(WITHIN_S)
        self.answered.append(self.command)
        told = {"quiet_s": QUIET_S} if self.command == "DELETE" else {"lease_s": 1.0, "renew_s": 0.2}
        answer = self.odd.pop(0) if self.odd else json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_DELETE = _serve  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None: ...

    @classmethod
    def wait_for(cls, method: str, count: int = 1) -> None:
        with cls.news:
            assert cls.news.wait_for(lambda: sum(asked[0] == method for asked in cls.asked) >= count, WITHIN_S)


@pytest.fixture
def gateway() -> Iterator[str]:
    Door.asked.clear()
    Door.answered.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_it_joins_when_it_can_answer_renews_and_leaves_before_it_stops(tiny: Path, gateway: str) -> None:
    told = ("--register", f"http://127.0.0.1:9,{gateway}", "--register-as", "own", "--replica", "first")
    told += ("--kv-events", "tcp://127.0.0.1:*")
    with running_engine(tiny, *told, env={"FAREBOX_ENGINE_REGISTER_TOKEN": "let-me-in"}) as engine:
        Door.wait_for("PUT", 2)
        method, path, shown, said = Door.asked[0]
        assert (method, path, shown) == ("PUT", "/replicas/own/first", "Bearer let-me-in")
        host, _, port = said.pop("kv_events").rpartition(":")
        assert host == "tcp://127.0.0.1"
        assert int(port) > 0, "the one that the system picked"
        assert said == {"base_url": f"{engine.url}/v1", "models": ["tiny"]}
        engine.process.send_signal(signal.SIGTERM)
        Door.wait_for("DELETE")
        # Whoever has not heard of it yet is answered like others.
        answer = httpx.post(f"{engine.url}/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1},
                            timeout=WITHIN_S)  # fmt: skip
        assert answer.status_code == 200
        assert engine.process.wait(timeout=WITHIN_S) == 0
    assert [asked[0] for asked in Door.asked].count("DELETE") == 1
    assert Door.asked[-1][0] == "DELETE", "who has left renews nothing"


async def test_who_leaves_amid_a_renewal_has_left(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal that arrives behind the farewell would have a dead engine asked until its lease runs out."""
    slow = threading.Event()
    monkeypatch.setattr(Door, "slow", slow)
    lease = lease_of(gateway, "x", "own", "first", "http://10.0.0.3:8000/v1", [])
    keeping = asyncio.create_task(lease.keep())
    await asyncio.to_thread(Door.wait_for, "PUT")
    keeping.cancel()
    leaving = asyncio.create_task(lease.leave())
    await asyncio.wait({keeping})
    threading.Timer(0.2, slow.set).start()  # long enough for a farewell that does not wait
    assert await asyncio.wait_for(leaving, WITHIN_S) == QUIET_S
    assert Door.answered == ["PUT", "DELETE"]


async def test_what_no_gateway_says_is_no_place_and_no_end(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's page, or a gateway of another day: the engine serves on, and asks again."""
    monkeypatch.setattr(local_backend.lease, "RENEW_S", 0.02)
    odd = [b"<html>", b"[]", b"{}", b'{"lease_s": 1, "renew_s": 0}', b'{"lease_s": 1, "renew_s": "soon"}']
    monkeypatch.setattr(Door, "odd", odd)
    lease = lease_of(gateway, "x", "own", "first", "http://10.0.0.3:8000/v1", [])
    keeping = asyncio.create_task(lease.keep())
    await asyncio.to_thread(Door.wait_for, "PUT", 7)
    assert not keeping.done()
    keeping.cancel()
    await asyncio.wait({keeping})
    assert await lease.leave() == QUIET_S


class Loading(BaseHTTPRequestHandler):
    """An engine of another make, that says this."""

    status: ClassVar[int] = 503

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


async def test_an_engine_of_another_make_joins_once_it_answers(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights load for minutes: who joined before would be sent requests, and fail them."""
    monkeypatch.setattr(local_backend.lease, "RENEW_S", 0.02)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Loading)
    base_url = f"http://127.0.0.1:{server.server_port}/v1"
    lease = lease_of(gateway, "x", "own", "other", base_url, [])
    asked: list[bool] = []

    def answers(url: str) -> bool:
        asked.append(_answers(url))
        return asked[-1]

    monkeypatch.setattr(local_backend.lease, "_answers", answers)
    keeping = asyncio.create_task(_keep_when_ready(lease))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        async with asyncio.timeout(WITHIN_S):
            while not asked:
                await asyncio.sleep(0.01)
            assert not Door.asked
            monkeypatch.setattr(Loading, "status", 401)
            while not Door.asked:
                await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
        server.shutdown()
        server.server_close()
    assert asked[0] is False
    assert asked[-1] is True
    assert _answers(base_url) is False  # nobody is there any more


def test_where_it_tells_of_its_cache_is_said_as_gateways_reach_it() -> None:
    for bound in ("tcp://*:5557", "tcp://0.0.0.0:5557", "tcp://127.0.0.1:5557", "tcp://[::]:5557"):
        for at in ("10.0.0.3", "[fd00::3]", "engine-0.engines"):
            lease = lease_of("http://g:4000", "x", "own", None, f"http://{at}:8000/v1", ["m"], [bound, "tcp://*:5558"])
            said = json.loads(lease._said)
            assert (said["kv_events"], said["kv_events_replay"]) == (f"tcp://{at}:5557", f"tcp://{at}:5558")


@pytest.mark.parametrize(("flags", "env", "problem"), [
    ((), {"FAREBOX_ENGINE_REGISTER_TOKEN": "x"}, "register_as"),
    (("--register-as", "own"), {}, "FAREBOX_ENGINE_REGISTER_TOKEN"),
    (("--register-as", "own", "--host", "0.0.0.0"), {"FAREBOX_ENGINE_REGISTER_TOKEN": "x"}, "advertise"),
])  # fmt: skip
def test_what_is_missing_is_told_before_the_model_is_loaded(
    tiny: Path, flags: tuple[str, ...], env: dict[str, str], problem: str
) -> None:
    argv = [sys.executable, "-m", "local_backend", str(tiny), "--port", "0", "--register", "http://127.0.0.1:9", *flags]
    done = subprocess.run(argv, cwd=ROOT, env={"PATH": "", **env}, capture_output=True, text=True, timeout=WITHIN_S)
    assert done.returncode == 2
    assert problem in done.stderr
