"""`farebox users`, `farebox audit` and `farebox keys rotate`, on an installation that nobody runs at the time."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from gateway.audit import GENESIS, chained
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


def test_people_from_invitation_to_the_door(folder: Path) -> None:
    owner = farebox_json("users", "invite", "olga", "--role", "owner", "--why", "founder", cwd=folder)
    assert "#token=" in owner["url"]
    assert (
        farebox_json("users", "invite", "ann", "--project", "proj_1", "--role", "developer", "--dry-run", cwd=folder)[
            "url"
        ]
        is None
    )
    ann = farebox_json("users", "invite", "ann", "--project", "proj_1", "--role", "developer", cwd=folder)
    assert farebox_json("users", "invite", "ann", "--organisation", "org_1", cwd=folder)["url"] is None  # Known by now.
    assert "here already" in farebox("users", "invite", "ann", cwd=folder, check=1).stderr
    assert "no team" in farebox("users", "invite", "bob", "--team", "none", cwd=folder, check=1).stderr
    listed = {each["name"]: each for each in farebox_json("users", "list", cwd=folder)["users"]}
    assert set(listed) == {"olga", "ann"}
    assert listed["ann"]["elsewhere"] == ["viewer of organisation org_1", "developer of project proj_1"]
    assert "developer of project proj_1" in farebox("users", "list", cwd=folder).stdout
    # The last owner stays owner and stays in.
    for argv in (["role", "olga", "viewer"], ["disable", "olga"]):
        assert "last owner" in farebox("users", *argv, cwd=folder, check=1).stderr
    farebox("users", "role", "ann", "admin", "--why", "on call", cwd=folder)
    farebox("users", "disable", ann["id"], cwd=folder)
    assert "disabled" in farebox("users", "link", "ann", cwd=folder, check=1).stderr
    farebox("users", "enable", "ann", cwd=folder)
    assert "#token=" in farebox("users", "link", "ann", cwd=folder).stdout
    farebox("users", "sign-out", "ann", cwd=folder)
    assert "users list" in farebox("users", "sign-out", "nobody", cwd=folder, check=1).stderr


def test_the_audit_is_listed_exported_and_proven(folder: Path) -> None:
    farebox("users", "invite", "olga", "--role", "owner", "--why", "100% the founder", cwd=folder)
    farebox("users", "invite", "ann", "--role", "viewer", cwd=folder)
    farebox("users", "role", "ann", "admin", "--why", "on call", cwd=folder)
    made = farebox_json("keys", "create", "--project", "Shop", "--name", "till", cwd=folder)
    assert farebox_json("keys", "rotate", made["id"], "--dry-run", cwd=folder)["new_key"] is None
    rotated = farebox_json("keys", "rotate", made["key"], "--overlap", "2h", "--why", "leaked", cwd=folder)
    assert (rotated["id"], rotated["new_key"] != made["key"]) == (made["id"], True)
    assert "the old secret ends in" in farebox("keys", "list", cwd=folder).stdout
    rows = farebox_json("audit", "list", cwd=folder)["audit"]
    assert [row["action"] for row in rows] == [
        "users.create",
        "users.create",
        "users.update",
        "key.create",
        "key.rotate",
    ]
    assert rows[2]["before"] == {"role": "viewer"}
    assert [row["note"] for row in farebox_json("audit", "list", "--why", "100%", cwd=folder)["audit"]] == [
        "100% the founder"
    ]
    assert "viewer -> admin" in farebox("audit", "list", "--action", "users.update", cwd=folder).stdout
    assert len(farebox_json("audit", "list", "--limit", "2", cwd=folder)["audit"]) == 2
    # The file proves itself, without the database.
    assert farebox_json("audit", "export", "audit.jsonl", cwd=folder)["rows"] == 5
    head = GENESIS
    for line in (folder / "audit.jsonl").read_text().splitlines():
        row = json.loads(line)
        head = chained(head, row)
        assert head.hex() == row["hash"]
    verdict = farebox_json("audit", "verify", cwd=folder)
    assert (verdict["intact"], verdict["head"]) == (True, head.hex())
    assert made["key"] not in (folder / "audit.jsonl").read_text()
    with sqlite3.connect(folder / ".farebox" / "farebox.db") as db:
        db.execute("UPDATE audit SET note = 'nothing' WHERE action = 'key.rotate'")
    assert "BROKEN at row 5" in farebox("audit", "verify", cwd=folder, check=1).stdout


def test_a_limit_on_what_is_not_there_is_refused_and_a_name_is_enough(folder: Path) -> None:
    for scope, ident in (("project", "proj_2"), ("organisation", "org_2"), ("team", "t"), ("key", "fbx-none"),
                         ("model", "org_2/gpt-*"), ("end_user", "Shoe")):  # fmt: skip
        for argv in (["budget", scope, ident, "5usd"], ["limit", scope, ident, "requests", "5"]):
            assert "no " in farebox("quotas", *argv, cwd=folder, check=1).stderr, argv
    assert farebox_json("quotas", "budget", "project", "Shop", "5usd", cwd=folder)["scope_id"] == "proj_1"
    farebox("quotas", "budget", "model", "org_1/gpt-*", "2usd", "--window", "day", cwd=folder)
    listed = farebox_json("quotas", "list", cwd=folder)
    assert [each["scope_id"] for each in listed["budgets"]] == ["org_1/gpt-*", "proj_1"]
    assert [each["name"] for each in listed["budgets"]] == ["Harbour/gpt-*", "Shop"]
    assert listed["limits"] == []
    assert "total: none -> 5.00 USD" in farebox("audit", "list", cwd=folder).stdout
