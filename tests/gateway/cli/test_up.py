"""`farebox up` as a stranger and as a supervisor see it: a process, its output, its exit code, its children."""

import http.client
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Up, farebox, farebox_json

Start = Callable[..., Up]


def get(url: str, key: str | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(what: Callable[[], bool], within_s: float = 15.0) -> None:
    until = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)


def test_ready_means_ready_and_the_last_line_is_for_scripts(start: Start) -> None:
    up = start("--no-local").wait_ready()
    assert set(up.ready) == {"base_url", "key", "models", "dashboard"}
    url, key = up.ready["base_url"], up.ready["key"]
    assert get(f"{url}/health/liveness")[0] == 200
    assert get(f"{url}/health/readiness")[0] == 200
    assert get(f"{url}/v1/models", key)[0] == 200
    assert get(f"{url}/v1/models", key[:-1])[0] == 401
    assert b"farebox_in_flight" in get(f"{url}/metrics")[1]
    text = "".join(up.said)
    for line in (f"OPENAI_BASE_URL={url}/v1", f"ANTHROPIC_BASE_URL={url}", f"GOOGLE_GEMINI_BASE_URL={url}", "curl"):
        assert line in text
    assert up.ready["dashboard"].startswith(f"{url}/ui")
    # The key stands on standard output, where it is asked for, and in no log.
    assert key not in up.errors.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_clean_and_leaves_no_process(start: Start, number: int) -> None:
    up = start("--no-local").wait_ready()
    below = children(up.process.pid)
    assert below
    assert up.stop(number) == 0
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in below))
    assert not (up.folder / ".farebox" / "run" / "up.json").exists()


def test_a_stop_during_the_start_is_clean_too(start: Start) -> None:
    up = start("--no-local")
    wait_until(lambda: (up.folder / ".farebox" / "run" / "up.lock").exists())
    assert up.stop() in (0, -signal.SIGTERM)  # The latter before any handler of ours was there.
    wait_until(lambda: not children(up.process.pid))


def test_a_second_start_finds_everything_and_a_killed_one_leaves_nothing_in_the_way(start: Start) -> None:
    first = start("--no-local").wait_ready()
    below = children(first.process.pid)
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    second = start("--no-local").wait_ready()
    assert second.ready["key"] == first.ready["key"]
    assert get(f"{second.ready['base_url']}/v1/models", second.ready["key"])[0] == 200
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in below))


def test_one_folder_has_one_up(start: Start) -> None:
    up = start("--no-local").wait_ready()
    refused = farebox("up", "--no-local", "--port", "0", cwd=up.folder, check=1)
    assert "already runs" in refused.stderr
    assert up.ready["base_url"] in refused.stderr
    assert refused.stdout == ""


def test_a_taken_port_is_named_with_the_fix(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = farebox("up", "--no-local", "--port", str(port), cwd=tmp_path, check=3)
    assert f"127.0.0.1:{port}" in refused.stderr
    assert "--port" in refused.stderr


def test_a_bad_setting_stops_the_start_and_names_itself(tmp_path: Path) -> None:
    refused = farebox("up", cwd=tmp_path, check=2, FAREBOX_SERVER__PROT="1")
    assert "FAREBOX_SERVER__PROT" in refused.stderr
    assert "did you mean port" in refused.stderr
    missing = farebox("up", cwd=tmp_path, check=2, FAREBOX_PROVIDERS__GROQ__CREDENTIAL__API_KEY="env:NOT_THERE")
    assert "NOT_THERE" in missing.stderr
    assert not (tmp_path / ".farebox" / "farebox.db").exists()


def test_a_key_in_the_environment_enables_its_provider_and_stays_out_of_the_children(start: Start) -> None:
    up = start("--no-local", GROQ_API_KEY="gsk_a_secret_of_the_operator").wait_ready()
    assert any(model.startswith("groq/") for model in up.ready["models"])
    for pid in children(up.process.pid):
        assert b"gsk_a_secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    listed = farebox_json("providers", "list", cwd=up.folder, GROQ_API_KEY="gsk_a_secret_of_the_operator")
    assert listed["providers"][0]["provider"] == "groq"
    assert "gsk_a_secret" not in json.dumps(listed)


def test_the_first_key_may_come_from_the_environment(start: Start) -> None:
    given = "a-key-that-the-operator-has-made"
    up = start("--no-local", FAREBOX_BOOTSTRAP_KEY=given).wait_ready()
    assert up.ready["key"] == given
    assert get(f"{up.ready['base_url']}/v1/models", given)[0] == 200


def test_several_workers_share_the_port_and_a_killed_one_comes_back(start: Start) -> None:
    up = start("--no-local", FAREBOX_SERVER__WORKERS="2").wait_ready()
    url = up.ready["base_url"]

    def workers() -> set[int]:
        serving = set()
        for pid in children(up.process.pid):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    serving.add(pid)
        return serving

    before = workers()
    assert len(before) == 2
    assert get(f"{url}/v1/models", up.ready["key"])[0] == 200
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(workers()) == 2 and workers() != before, 30)
    assert up.stop() == 0
    wait_until(lambda: not workers())


def test_a_second_signal_does_not_wait_for_an_open_request(start: Start) -> None:
    up = start("--no-local").wait_ready()
    host, _, port = up.ready["base_url"].removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("authorization", f"Bearer {up.ready['key']}")
    connection.putheader("content-length", "1000000")  # Half a request: its body never comes.
    connection.endheaders()

    def refused() -> bool:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except ConnectionRefusedError:
            return True
        return False

    up.process.send_signal(signal.SIGTERM)
    wait_until(refused)
    assert up.process.poll() is None
    assert up.stop() == 0
    connection.close()
