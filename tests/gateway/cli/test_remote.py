"""`farebox --url`: the same command, the same output, on another machine's installation; `--dry-run`; `--watch`."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import MetaData
from sqlalchemy import select as select_sql

from billing.db import create_engine, reading
from gateway.admin.auth.roles import Role, may_run
from gateway.cli import COMMANDS, build
from gateway.cli.common import Changes, Common
from gateway.cli.hosted import understand
from tests import services
from tests.gateway.cli.conftest import Done, Up, environment, farebox, farebox_json, token_of

PRICES = {"gpt-x": {"litellm_provider": "openai", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05}}


class There(NamedTuple):
    """A running Farebox seen from another folder, and somebody's token for each role."""

    up: Up
    folder: Path
    tokens: dict[str, str]

    def run(self, *argv: str, role: str = "owner", check: int | None = 0) -> Done:
        url, token = self.up.ready["base_url"], self.tokens[role]
        return farebox(*argv, cwd=self.folder, check=check, FAREBOX_URL=url, FAREBOX_TOKEN=token)


@pytest.fixture(scope="module")
def there(running: Up, tmp_path_factory: pytest.TempPathFactory) -> There:
    tokens = token_of(running, "owner", "finance", "viewer")
    return There(running, tmp_path_factory.mktemp("elsewhere"), tokens)


@pytest.mark.parametrize(
    "argv",
    [
        ["keys", "list"],
        ["keys", "list", "--json"],
        ["keys", "show", "fbx-nobody", "--json"],
        ["usage", "--by", "model"],
        ["usage", "--since", "yesterday"],
        ["quotas", "list"],
        ["ledger", "balance"],
        ["ledger", "organisations"],
        ["ledger", "trial"],
        ["prices", "list", "groq", "--model", "gpt-oss"],
        ["prices", "diff", "prices.json"],
        ["prices", "rates"],
        ["alerts", "list"],
        ["alerts", "sent"],
        ["export", "status"],
        ["export", "again", "nothing", "--since", "2026-11-01"],
        ["models", "list"],
        ["providers", "list"],
        ["reconcile", "openai", "prices.json"],
        ["invoice", "org_nobody", "2026-11"],
        ["topup", "pay", "org_nobody", "5usd"],
    ],
)
def test_a_command_says_there_what_it_says_here(there: There, argv: list[str]) -> None:
    for folder in (there.folder, there.up.folder):
        (folder / "prices.json").write_text(json.dumps(PRICES))
    here = farebox(*argv, cwd=there.up.folder, check=None)
    assert there.run(*argv, check=here.returncode) == here


def test_changes_are_made_there_and_files_go_both_ways(there: There) -> None:
    made = json.loads(there.run("keys", "create", "--project", "demo", "--name", "from afar", "--json").stdout)
    assert httpx.get(
        f"{there.up.ready['base_url']}/v1/models", headers={"authorization": f"Bearer {made['key']}"}
    ).is_success
    org = json.loads(there.run("ledger", "open", "Afar", "--json").stdout)["id"]
    there.run("topup", "pay", org, "25usd", "--id", "bank-1")
    assert "was booked before" in there.run("topup", "pay", org, "25usd", "--id", "bank-1").stdout
    there.run("invoice", org, "2026-11", "--csv", "bill.csv", "--pdf", "deep/bill.pdf")
    assert f"2026-11/{org}" in (there.folder / "bill.csv").read_text()
    assert (there.folder / "deep/bill.pdf").read_bytes().startswith(b"%PDF")
    (there.folder / "prices.json").write_text(json.dumps(PRICES))
    assert "1 of 1 prices imported" in there.run("prices", "import", "prices.json").stdout
    there.run("export", "usage", "--csv", "rows.csv.gz")
    assert (there.folder / "rows.csv.gz").read_bytes().startswith(b"\x1f\x8b")
    there.run("keys", "revoke", made["id"])
    there.run("prices", "import", "missing.json", check=2)
    assert not (there.up.folder / "bill.csv").exists()
    audit = _audit(there)
    amounts = [row["after"]["amount"] for row in audit if row["subject"] == "topup pay"]
    assert "25usd" in amounts
    assert {row["actor"] for row in audit if row["subject"] == made["id"]} == {"owner (owner)"}


def _audit(there: There) -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {there.tokens['owner']}"}
    answer = httpx.get(f"{there.up.ready['base_url']}/admin/v1/audit?limit=200", headers=headers)
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def test_a_dry_run_shows_what_would_be_and_changes_nothing(there: There) -> None:
    before = there.run("keys", "list").stdout
    made = json.loads(there.run("keys", "create", "--project", "demo", "--dry-run", "--json").stdout)
    assert (made["dry_run"], made["key"], made["state"]) == (True, None, "active")
    assert "nothing of this was kept" in there.run("ledger", "open", "Never", "--dry-run").stdout
    assert there.run("keys", "list").stdout == before
    assert "Never" not in there.run("ledger", "organisations").stdout


@pytest.mark.parametrize(
    ("argv", "environ", "code", "says"),
    [
        (["keys", "list"], {"FAREBOX_URL": "http://127.0.0.1:9", "FAREBOX_TOKEN": "x"}, 3, "cannot be reached"),
        (["keys", "list"], {"FAREBOX_URL": "BASE", "FAREBOX_TOKEN": "wrong"}, 1, "token is unknown"),
        (["keys", "list"], {"FAREBOX_URL": "BASE"}, 2, "FAREBOX_TOKEN"),
        (["keys", "list"], {"FAREBOX_URL": "BASE/v1", "FAREBOX_TOKEN": "T"}, 3, "not as a Farebox does"),
        (["keys", "list", "--url", "ftp://x"], {"FAREBOX_TOKEN": "T"}, 2, "https://"),
        (["keys", "list", "--data", "d"], {"FAREBOX_URL": "BASE", "FAREBOX_TOKEN": "T"}, 2, "of this machine"),
        (["keys", "list", "--url", "BASE"], {"FAREBOX_TOKEN": "T"}, 0, ""),
        (["serve", "--url", "BASE"], {"FAREBOX_TOKEN": "T"}, 2, "--url"),
        (["keys", "create", "--project", "demo", "--watch", "1"], {}, 2, "again and again"),
        (["keys", "list", "--watch", "0"], {}, 2, "too often"),
    ],
)
def test_what_cannot_be_done_elsewhere_is_said_with_a_fix(
    there: There, argv: list[str], environ: dict[str, str], code: int, says: str
) -> None:
    base = there.up.ready["base_url"]
    said = {
        name: {"T": there.tokens["owner"]}.get(value, value.replace("BASE", base)) for name, value in environ.items()
    }
    done = farebox(*(each.replace("BASE", base) for each in argv), cwd=there.folder, check=code, **said)
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_token_runs_what_its_role_may(there: There) -> None:
    refused = there.run("keys", "create", "--project", "demo", role="viewer", check=1)
    assert "role viewer may not run" in refused.stderr
    assert "owner or admin" in refused.stderr
    there.run("keys", "list", role="viewer")
    there.run("ledger", "trial", role="finance")
    there.run("ledger", "trial", role="viewer", check=1)
    there.run("providers", "list", role="finance")


def test_a_command_that_nobody_thought_of_is_for_owners() -> None:
    assert [role.value for role in Role if may_run(role, "frob all")] == ["owner"]
    assert not may_run(Role.VIEWER, "keys create")
    assert may_run(Role.VIEWER, "keys list")
    assert not may_run(Role.VIEWER, "keys listen")


def test_a_gateway_writes_no_file_that_nobody_asked_for(there: There, tmp_path: Path) -> None:
    """Whoever took over the other side sends files of its own choice."""
    import http.server
    import threading

    lines = b'{"file":"evil","first":true,"data":"eA=="}\n{"exit":0}\n'

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(lines)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Evil) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {"FAREBOX_URL": f"http://127.0.0.1:{server.server_port}", "FAREBOX_TOKEN": "t"}
        for name in ("evil", "out/../evil", "out/.."):
            lines = json.dumps({"file": name, "first": True, "data": "eA=="}).encode() + b'\n{"exit":0}\n'
            done = farebox("export", "usage", "--parquet", "out", cwd=tmp_path, check=1, **environ)
            assert "nobody asked for" in done.stderr
        lines = b'{"out":"half"}\n'
        assert "went away" in farebox("keys", "list", cwd=tmp_path, check=3, **environ).stderr
        server.shutdown()
    assert list(tmp_path.iterdir()) == []


def test_every_command_that_takes_a_database_can_be_sent() -> None:
    """And `Changes` takes --dry-run: what is bound for money and keys has it."""
    app, seen = build(), {}
    for noun in COMMANDS:
        noun_app = app[noun]
        for path in [[noun], *([noun, verb] for verb in noun_app if not verb.startswith("-"))]:
            with contextlib.suppress(KeyError, TypeError):
                function = (app[path[0]][path[1]] if len(path) > 1 else app[path[0]]).default_command
                default = function.__kwdefaults__["common"] if function is not None else None
                seen[" ".join(path)] = default
    dry = {name for name, default in seen.items() if isinstance(default, Changes)}
    assert {"keys create", "keys revoke", "quotas budget", "topup pay", "ledger limit", "prices set"} <= dry
    assert all(isinstance(seen[name], Common) for name in ("usage", "invoice", "reconcile", "models list"))
    assert not isinstance(seen["up"], Common)
    assert understand(["keys", "list"]).travels


async def _rows(url: str) -> dict[str, list[Any]]:
    engine = create_engine(url)
    try:
        async with reading(engine) as db:
            found = MetaData()
            await db.run_sync(found.reflect)
            return {
                name: sorted(map(repr, (await db.execute(select_sql(table))).all()))
                for name, table in found.tables.items()
            }
    finally:
        await engine.dispose()


def test_a_dry_run_leaves_every_table_as_it_was_on_both_databases(fresh_database_url: str, tmp_path: Path) -> None:
    said = {"DATABASE_URL": fresh_database_url, "cwd": tmp_path}
    farebox("migrate", **said)  # type: ignore[arg-type]
    org = farebox_json("ledger", "open", "One", **said)["id"]  # type: ignore[arg-type]
    farebox("topup", "pay", org, "10usd", "--id", "p1", **said)  # type: ignore[arg-type]
    (tmp_path / "prices.json").write_text(json.dumps(PRICES))
    before = services.in_thread(_rows(fresh_database_url))
    for argv in (
        ["topup", "pay", org, "5usd"],
        ["topup", "grant", org, "5usd", "--expires", "2030-01-01"],
        ["topup", "refund", org, "1usd", "--note", "n"],
        ["topup", "payout", org, "1usd", "--note", "n"],
        ["topup", "adjust", org, "1usd", "--note", "n"],
        ["ledger", "open", "Two"],
        ["ledger", "limit", org, "5usd"],
        ["ledger", "currency", org, "EUR"],
        ["quotas", "budget", "organisation", org, "5usd"],
        ["quotas", "limit", "organisation", org, "requests", "5"],
        ["quotas", "team", "T", "--organisation", org],
        ["prices", "set", "house", "m", "--input", "1", "--output", "2"],
        ["prices", "import", "prices.json"],
        ["prices", "margin", "organisation", org, "125"],
        ["prices", "plan", org, "gold"],
        ["prices", "rate", "EUR", "0.9"],
        ["alerts", "add", "budget", "80%", "email", "a@b.c"],
    ):
        assert farebox_json(*argv, "--dry-run", **said)["dry_run"] is True, argv  # type: ignore[arg-type]
    after = services.in_thread(_rows(fresh_database_url))
    assert after == before
    assert farebox("topup", "payout", org, "99usd", "--note", "n", "--dry-run", check=1, **said).stderr  # type: ignore[arg-type]


def test_watch_says_it_again_until_ctrl_c(there: There) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "keys", "list", "--json", "--watch", "0.2"],
        cwd=there.folder,
        env=environment(FAREBOX_URL=there.up.ready["base_url"], FAREBOX_TOKEN=there.tokens["owner"]),
        stdout=subprocess.PIPE,
        # Who runs in the background inherits a deaf ear for Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert all("keys" in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_token_is_made_and_revoked_by_command(there: There) -> None:
    made = farebox_json("tokens", "create", "laptop", "--role", "finance", "--days", "7", cwd=there.up.folder)
    environ = {"FAREBOX_URL": there.up.ready["base_url"], "FAREBOX_TOKEN": made["token"]}
    farebox("ledger", "trial", cwd=there.folder, **environ)
    farebox("keys", "create", "--project", "demo", cwd=there.folder, check=1, **environ)
    dry = farebox_json("tokens", "create", "x", "--dry-run", cwd=there.up.folder)
    assert dry["token"] is None
    there.run("tokens", "revoke", made["id"])
    assert "revoked" in farebox("ledger", "trial", cwd=there.folder, check=1, **environ).stderr
    listed = {token["id"]: token for token in json.loads(there.run("tokens", "list", "--json").stdout)["tokens"]}
    assert listed[made["id"]]["state"] == "revoked"
    assert made["token"] not in str(listed)
    assert "tokens list" in there.run("tokens", "revoke", "token_none", check=1).stderr
    assert "users list" in there.run("tokens", "create", "x", "--of", "nobody", check=1).stderr


def test_who_leaves_in_the_middle_ends_the_command_and_makes_room(there: There) -> None:
    """Only a few commands run at once: those of callers who left must not be among them."""
    url = f"{there.up.ready['base_url']}/admin/v1/commands"
    headers = {"authorization": f"Bearer {there.tokens['owner']}"}
    argv = ["demo", "--days", "1", "--a-day", "1", "--traffic", "--seconds", "3600", "--rate", "5"]
    try:
        for _ in range(6):
            with httpx.stream("POST", url, json={"argv": argv}, headers=headers, timeout=60) as response:
                assert response.status_code == 200
                lines = response.iter_lines()
                while '"progress"' not in next(lines):
                    pass
        assert "key" in there.run("keys", "list").stdout
    finally:
        there.run("demo", "--clear")


def test_a_project_is_made_there_and_here(there: There) -> None:
    def listed(role: str = "viewer") -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(there.run("projects", "list", "--json", role=role).stdout)["projects"]
        return found

    home = next(each["organisation_id"] for each in listed() if each["name"] == "demo")
    create = ["projects", "create", "search", "--organisation"]
    made = json.loads(there.run(*create, home, "--json").stdout)
    assert "a project 'search' already" in there.run(*create, home, check=1).stderr
    there.run("projects", "create", "never", "--organisation", home, "--dry-run")
    org = json.loads(there.run("ledger", "open", "Another", "--json").stdout)["id"]
    assert org in there.run("projects", "create", "x", check=1).stderr, "with several, one has to be named"
    there.run(*create, org)
    assert {(each["name"], each["organisation_id"]) for each in listed()} >= {("search", home), ("search", org)}
    assert "never" not in {each["name"] for each in listed()}
    there.run("keys", "create", "--project", made["id"], "--name", "of the new one")
    assert "1 to 200" in farebox("projects", "create", "", cwd=there.up.folder, check=1).stderr
