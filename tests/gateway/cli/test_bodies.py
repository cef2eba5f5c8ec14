"""`farebox bodies`: switched on and off by hand, and one read, on an installation that nobody runs at the time."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from gateway.bodies.store import of_row
from gateway.config import load
from gateway.kept import key_ring
from tests.gateway.cli.conftest import farebox, farebox_json


@pytest.fixture
def folder(sqlite_template: Path, tmp_path: Path) -> Path:
    (tmp_path / ".farebox").mkdir()
    shutil.copy(sqlite_template, tmp_path / ".farebox" / "farebox.db")
    with sqlite3.connect(tmp_path / ".farebox" / "farebox.db") as db:
        db.execute("INSERT INTO organisations (id, name, created_at_ns) VALUES ('org_1', 'Harbour', 1)")
        db.execute(
            "INSERT INTO projects (id, organisation_id, name, created_at_ns) VALUES ('proj_1', 'org_1', 'Shop', 1)"
        )
    return tmp_path


def test_a_project_logs_and_stops(folder: Path) -> None:
    assert farebox_json("bodies", "list", cwd=folder)["projects"] == []
    assert farebox_json("bodies", "set", "Shop", "--days", "7", "--dry-run", cwd=folder)["dry_run"]
    assert farebox_json("bodies", "list", cwd=folder)["projects"] == []
    assert "kept for 7 days" in farebox("bodies", "set", "Shop", "--days", "7", cwd=folder).stdout
    farebox("bodies", "set", "proj_1", "--days", "3", "--detectors", "card", "email", cwd=folder)
    assert farebox_json("bodies", "list", cwd=folder)["projects"] == [
        {"project_id": "proj_1", "days": 3, "detectors": ["card", "email"]}
    ]
    for argv, says in (
        (["set", "Shop", "--days", "0"], "1 to"),
        (["set", "Shop", "--days", "1", "--detectors", "shoe"], "no detector 'shoe'"),
        (["set", "Shoe", "--days", "1"], "there is: Shop"),
        (["read", "req_none"], "no bodies of the request 'req_none'"),
    ):
        assert says in farebox("bodies", *argv, cwd=folder, check=1).stderr
    farebox("bodies", "stop", "Shop", cwd=folder)
    assert farebox_json("bodies", "list", cwd=folder)["projects"] == []
    actions = [row["action"] for row in farebox_json("audit", "list", "--organisation", "org_1", cwd=folder)["audit"]]
    assert actions == ["bodies.set"] * 3


def test_a_body_is_read_and_whoever_reads_it_stands_in_the_audit(folder: Path) -> None:
    settings = load(environ={}, flags={"data_dir": folder / ".farebox"})
    sealed = key_ring(settings).seal(json.dumps({"request": {"a": 1}, "response": "hi"}).encode(), of_row("req_1"))
    with sqlite3.connect(folder / ".farebox" / "farebox.db") as db:
        row = ("req_1", "proj_1", 1, time.time_ns() + 10**15, sealed.key_id, sealed.wrapped, sealed.ciphertext)
        db.execute("INSERT INTO body_logs (request_id, project_id, at_ns, expires_at_ns, key_id, wrapped, ciphertext) "
                   "VALUES (?, ?, ?, ?, ?, ?, ?)", row)  # fmt: skip
    assert farebox_json("bodies", "read", "req_1", cwd=folder) == {"request": {"a": 1}, "response": "hi"}
    assert '{"a":1}' in farebox("bodies", "read", "req_1", cwd=folder).stdout
    (first, _) = farebox_json("audit", "list", "--action", "bodies.read", cwd=folder)["audit"]
    assert (first["subject"], first["organisation_id"]) == ("req_1", "org_1")
