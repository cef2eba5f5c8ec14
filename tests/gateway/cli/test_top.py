"""`farebox top`: figures for scripts, and the live view in a real pseudo-terminal, here and from elsewhere."""

import errno
import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.cells import cell_len
from rich.console import Console

from billing.pulse import Pulse, nothing
from gateway.cli.top import as_table, sensible, sorted_rows
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.cli.conftest import Up, emulated, environment, farebox, farebox_json, token_of
from tests.gateway.cli.test_up import wait_until

MODEL = "openai/gpt-4o-mini"


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """After three answers, one of them streamed."""
    upstream = OpenAIEmulator()
    with emulated(upstream):
        folder = tmp_path_factory.mktemp("busy")
        up = Up(folder, "--no-local", OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=f"{upstream.url}/v1")
        try:
            up.wait_ready()
            for stream in (False, False, True):
                body = {"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Say hello"}]}
                headers = {"authorization": f"Bearer {up.ready['key']}"}
                answer = httpx.post(
                    f"{up.ready['base_url']}/v1/chat/completions", json=body, headers=headers, timeout=60
                )
                assert answer.status_code == 200, answer.text
            wait_until(lambda: look(up)["total"]["requests"] == 3, 60)
            yield up
        finally:
            up.stop()


def look(up: Up, *flags: str) -> dict[str, Any]:
    found: dict[str, Any] = farebox_json("top", "--once", "--window", "3600", *flags, cwd=up.folder)
    return found


def test_one_look_has_rates_money_and_waits(busy: Up) -> None:
    value = look(busy)
    (row,) = value["rows"]
    assert (row["name"], row["requests"], row["failed"]) == ("gpt-4o-mini", 3, 0)
    assert row["charge_pusd"] == farebox_json("usage", "--by", "model", cwd=busy.folder)["total_charge_pusd"] > 0
    assert row["requests_per_s"] == pytest.approx(3 / 3600, abs=0.001)
    assert row["first_token_p95_ms"] is not None
    assert value["engine"]["state"] == "off"
    assert look(busy, "--by", "key")["rows"][0]["label"].startswith("first (fbx-")
    assert look(busy, "--by", "provider")["rows"][0]["name"] == "openai"
    table = farebox("top", "--once", "--window", "3600", cwd=busy.folder).stdout
    assert "gpt-4o-mini" in table
    assert "local engine off" in table


def test_from_elsewhere_it_is_the_same_look(busy: Up, tmp_path: Path) -> None:
    environ = {"FAREBOX_URL": busy.ready["base_url"], "FAREBOX_TOKEN": token_of(busy, "owner")["owner"]}
    there = farebox_json("top", "--once", "--window", "3600", cwd=tmp_path, **environ)
    here = look(busy)
    assert there["rows"][0]["charge_pusd"] == here["rows"][0]["charge_pusd"]
    assert there.keys() == here.keys()
    with Terminal(tmp_path, "--window", "3600", "--every", "0.2", **environ) as terminal:
        terminal.wait_for("gpt-4o-mini")
        terminal.press("q")
        assert terminal.ended() == 0


def test_the_live_view_obeys_its_keys_and_leaves_the_terminal_as_it_was(busy: Up) -> None:
    with Terminal(busy.folder, "--window", "3600", "--every", "0.2") as terminal:
        before = termios.tcgetattr(terminal.slave)[3]
        terminal.wait_for("gpt-4o-mini")
        terminal.wait_for("by model, most requests first")
        terminal.press("k")
        terminal.wait_for("by key, most requests first")
        terminal.wait_for("first (fbx-")
        terminal.press("s")
        terminal.wait_for("most spend first")
        terminal.press(" ")
        terminal.wait_for("HELD")
        terminal.press("q")
        assert terminal.ended() == 0
        assert termios.tcgetattr(terminal.slave)[3] == before
        terminal.wait_for("\x1b[?1049l")  # out of the second screen


def test_without_a_terminal_it_says_what_scripts_do(busy: Up, tmp_path: Path) -> None:
    assert "--once --json" in farebox("top", cwd=busy.folder, check=2).stderr
    assert "--window" in farebox("top", "--window", "0", cwd=busy.folder, check=2).stderr
    refused = farebox("top", "--once", cwd=tmp_path, check=3, FAREBOX_URL="http://127.0.0.1:9", FAREBOX_TOKEN="x")
    assert "cannot be reached" in refused.stderr


def test_quantiles_and_orders() -> None:
    slow = Pulse("slow", 1, 1, 5, 5, 7, {900: 1})
    fast = Pulse("fast", 19, 0, 5, 5, 1, {10: 19})
    both = slow + fast
    assert (both.quantile_ms(0.5), both.quantile_ms(0.95), both.quantile_ms(0.96)) == (10, 10, 900)
    assert nothing("x").quantile_ms(0.5) is None
    rows = [
        {"name": p.name, "requests": p.requests, "failed": p.failed, "charge_pusd": p.charge_pusd,
         "input_tokens_per_s": 1, "output_tokens_per_s": p.requests, "first_token_p95_ms": p.quantile_ms(0.95)}
        for p in (slow, fast)
    ]  # fmt: skip
    first = {sort: sorted_rows(rows, sort)[0]["name"] for sort in ("requests", "tokens", "spend", "errors", "wait")}
    assert first == {"requests": "fast", "tokens": "fast", "spend": "slow", "errors": "slow", "wait": "slow"}


@pytest.mark.parametrize(
    ("exact", "shown"),
    [
        ("12.345678901234", "12.35"), ("1234567.00", "1234567.00"), ("0.00", "0.00"), ("0.50", "0.500"),
        ("0.012345678901", "0.0123"), ("0.000000012345", "0.0000000123"), ("0.000000000001", "0.00000000000100"),
    ],
)  # fmt: skip
def test_money_by_the_hour_is_shown_as_exactly_as_it_is_known(exact: str, shown: str) -> None:
    assert sensible(exact) == shown


@pytest.mark.parametrize("name", ["accounts/fireworks/models/llama-v3p1-405b-instruct", "\u6a21\u578b" * 30])
def test_a_long_name_loses_its_middle_before_its_line_breaks(name: str) -> None:
    figures = {
        "requests_per_s": 12.345, "input_tokens_per_s": 12345.67, "output_tokens_per_s": 2345.67, "failed": 12,
        "usd_per_hour": "12.3456789", "first_token_p50_ms": 1234, "first_token_p95_ms": 12345,
    }  # fmt: skip
    rows = [figures | {"label": "gpt-4o"}, figures | {"label": name}]
    value = {"by": "model", "window_s": 60, "total": figures, "engine": {"state": "off"}, "rows": rows}

    def lines(width: int) -> list[str]:
        page = io.StringIO()
        Console(file=page, width=width).print(as_table(value))
        return page.getvalue().splitlines()

    for width in (79, 80):
        short, long = lines(width)[-2:]
        assert short.startswith("gpt-4o  ")
        shown = long.split()[0]
        assert (shown[:4], shown[-4:], shown.count("\u2026")) == (name[:4], name[-4:], 1)
        assert cell_len(long) == cell_len(short) <= width
    assert lines(200)[-1].split()[0] == name


class Terminal:
    """`farebox top` in a pseudo-terminal of its own."""

    def __init__(self, folder: Path, *flags: str, **environ: str) -> None:
        self._folder, self._flags, self._environ = folder, flags, environ
        self._seen = ""

    def __enter__(self) -> "Terminal":
        self._master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (40, 160))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "top", *self._flags],
            cwd=self._folder,
            env=environment(TERM="xterm", **self._environ),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
        os.close(self.slave)

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def wait_for(self, text: str, within_s: float = 60.0) -> None:
        """What was shown since the last one that was waited for has the text in it."""
        until = time.monotonic() + within_s
        while text not in self._seen:
            assert time.monotonic() < until, f"no {text!r} in {self._seen[-3000:]!r}"
            self._read(1.0)
        self._seen = self._seen.partition(text)[2]

    def ended(self, within_s: float = 60.0) -> int:
        """The exit code. Reads on meanwhile: a full terminal would hold the process up."""
        until = time.monotonic() + within_s
        while self._process.poll() is None and time.monotonic() < until:
            self._read(0.1)
        self._read(0.0)
        return self._process.wait(1)

    def _read(self, patience_s: float) -> None:
        if select.select([self._master], [], [], patience_s)[0]:
            try:
                self._seen += os.read(self._master, 1 << 16).decode(errors="replace")
            except OSError as error:
                if error.errno != errno.EIO:  # nobody holds the other end any more
                    raise


def test_live_samples_go_through_the_gateway_when_a_model_is_named(busy: Up) -> None:
    """Last of this file: it adds requests. `--clear` takes them out of the reports again."""
    said = farebox_json(
        "demo", "--days", "1", "--a-day", "1", "--traffic", "--model", MODEL, "--seconds", "1", "--rate", "10",
        cwd=busy.folder,
    )  # fmt: skip
    live = said["live"]
    assert (live["requests"] > 0, live["failed"], live["real"]) == (True, 0, True)

    def booked() -> int:
        lines = farebox_json("usage", "--by", "key", cwd=busy.folder)["lines"]
        return sum(line["requests"] for line in lines if (line["name"] or "").startswith("sample: traffic"))

    wait_until(lambda: booked() == live["requests"], 60)
    assert farebox_json("demo", "--clear", cwd=busy.folder)["removed"]["usage_records"] >= live["requests"]
    assert booked() == 0
    assert farebox_json("ledger", "trial", cwd=busy.folder)["sound"] is True
