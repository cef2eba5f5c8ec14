"""The other commands, against a running Farebox: what people type, what programs read, exit codes."""

from pathlib import Path
from typing import Any

import pytest

from tests.gateway.cli.conftest import Up, environment, farebox, farebox_json
from tests.gateway.cli.test_up import get, wait_until


def models_status(up: Up, key: str) -> int:
    return get(f"{up.ready['base_url']}/v1/models", key)[0]


def test_a_key_works_at_once_and_is_refused_soon_after_its_revocation(running: Up) -> None:
    made = farebox_json(
        "keys", "create", "--project", "demo", "--name", "ci", "--budget", "0.01usd", "--rpm", "60", "--tpm", "1000",
        "--parallel", "2", "--models", "gpt-*", "smollm2-*", "--allow-ip", "127.0.0.0/8", "--expires", "90d",
        cwd=running.folder,
    )  # fmt: skip
    assert made["budget"] == "0.01 USD total"
    assert made["models"] == ["gpt-*", "smollm2-*"]
    assert (made["rpm"], made["tpm"], made["parallel"], made["state"]) == (60, 1000, 2, "active")
    assert models_status(running, made["key"]) == 200
    shown = farebox_json("keys", "show", made["key"], cwd=running.folder)
    assert shown["id"] == made["id"]
    assert shown["spent_pusd"] == 0
    assert made["key"] not in str(shown)
    farebox("keys", "revoke", made["id"], cwd=running.folder)
    # By the message: who missed it would read it again after half a minute.
    wait_until(lambda: models_status(running, made["key"]) == 401, 15)
    listed = farebox_json("keys", "list", "--project", "demo", cwd=running.folder)["keys"]
    assert {key["id"]: key["state"] for key in listed}[made["id"]] == "revoked"


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--project", "nowhere"], 1, "demo"),
        (["--project", "demo", "--budget", "a lot"], 2, "0.01usd"),
        (["--project", "demo", "--budget", "-1"], 2, "below zero"),
        (["--project", "demo", "--expires", "soon"], 2, "90d"),
        (["--project", "demo", "--expires", "2020-01-01"], 1, "past"),
        (["--project", "demo", "--allow-ip", "everywhere"], 1, "everywhere"),
        (["--project", "demo", "--rpm", "-5"], 1, "rpm"),
        (["--project", "demo", "--nonsense"], 2, "nonsense"),
        ([], 2, "project"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_by_name(running: Up, flags: list[str], code: int, says: str) -> None:
    refused = farebox("keys", "create", *flags, cwd=running.folder, check=code)
    assert says in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr


def test_usage_and_ledger_of_a_fresh_installation(running: Up) -> None:
    for by in ("key", "project", "model", "day", "provider"):
        assert farebox_json("usage", "--by", by, cwd=running.folder) == {
            "by": by,
            "lines": [],
            "total_charge_usd": "0.00",
            "total_charge_pusd": 0,
        }
    assert farebox_json("ledger", "balance", cwd=running.folder) == {"accounts": []}
    assert farebox_json("ledger", "trial", cwd=running.folder)["sound"] is True
    assert "debits equal credits" in farebox("ledger", "trial", cwd=running.folder).stdout
    assert "24h" in farebox("usage", "--since", "yesterday", cwd=running.folder, check=2).stderr


def test_a_load_on_nobody_ends_at_once_and_says_so(tmp_path: Path) -> None:
    told = farebox("bench", "--url", "http://127.0.0.1:9", "--key", "fbx-k", "--seconds", "600", cwd=tmp_path, check=3)
    assert "nobody answers at http://127.0.0.1:9" in told.stderr
    assert "farebox up" in told.stderr


def test_the_doctor_finds_all_well_here_and_says_what_to_mend_there(running: Up, tmp_path: Path) -> None:
    here = farebox_json("check", cwd=running.folder)
    assert here["ok"], here
    assert any(running.ready["base_url"] in finding["says"] for finding in here["findings"])
    there = farebox_json(
        "check",
        cwd=tmp_path,
        check=1,
        DATABASE_URL="postgresql://u:pass-word@127.0.0.1:9/d",
        REDIS_URL="redis://127.0.0.1:9",
    )
    bad = {finding["what"]: finding for finding in there["findings"] if finding["state"] == "bad"}
    assert set(bad) == {"database", "redis"}
    assert all(finding["fix"] for finding in bad.values())
    assert "pass-word" not in str(there)
    assert "to mend" in farebox("check", cwd=tmp_path, check=1, REDIS_URL="redis://127.0.0.1:9").stdout


def test_settings_can_be_shown_checked_and_described(tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text('[providers.groq]\ncredential = { api_key = "env:SOME_KEY" }\n')
    shown = farebox_json("config", "show", cwd=tmp_path)
    assert shown["providers"]["groq"]["credential"] == {"api_key": "env:SOME_KEY"}
    missing = farebox_json("config", "check", cwd=tmp_path, check=1)
    assert "SOME_KEY" in missing["missing"][0]
    assert farebox_json("config", "check", cwd=tmp_path, SOME_KEY="x")["ok"] is True
    assert '"ServerSettings"' in farebox("config", "schema", cwd=tmp_path).stdout
    refused = farebox("config", "check", "--json", cwd=tmp_path, check=2, PORT="x")
    assert '"kind":"ConfigError"' in refused.stderr


def test_prices_are_listed_and_set_to_the_last_digit(running: Up) -> None:
    listed = farebox_json("prices", "list", "groq", "--model", "llama", cwd=running.folder)["prices"]
    assert listed
    assert all(row["provider"] == "groq" and "llama" in row["model"] for row in listed)
    farebox(
        "prices",
        "set",
        "house",
        "model-x",
        "--input",
        "0.000001",
        "--output",
        "1.5",
        "--cache-read",
        "0",
        cwd=running.folder,
    )
    (row,) = farebox_json("prices", "list", "house", cwd=running.folder)["prices"]
    assert row["usd_per_million"]["input_tokens"] == "0.000001"
    assert row["usd_per_million"]["output_tokens"] == "1.5"
    assert row["usd_per_million"]["cache_read_tokens"] == "0"
    assert row["source"] == "operator"
    refused = farebox(
        "prices", "set", "house", "x", "--input", "0.0000001", "--output", "1", cwd=running.folder, check=2
    )
    assert "six decimals" in refused.stderr
    farebox("prices", "set", "house", "ear", "--per", "seconds=0.0001", "--per", "requests=0", cwd=running.folder)
    ear = next(
        row for row in farebox_json("prices", "list", "house", cwd=running.folder)["prices"] if row["model"] == "ear"
    )
    assert ear["usd_per_million"]["seconds"] == "100"
    for wrong in (["--per", "hours=1"], ["--per", "seconds=x"], ["--per", "seconds=-1"], ["--input", "1"], []):
        refused = farebox("prices", "set", "house", "y", *wrong, cwd=running.folder, check=2)
        assert "price" in refused.stderr


def test_a_key_has_a_weight(running: Up) -> None:
    made = farebox_json("keys", "create", "--project", "demo", "--name", "heavy", "--weight", "3", cwd=running.folder)
    assert made["weight"] == 3
    farebox("keys", "weight", made["key"], "7", cwd=running.folder)
    assert farebox_json("keys", "show", made["key"], cwd=running.folder)["weight"] == 7
    refused = farebox("keys", "weight", made["key"], "0", cwd=running.folder, check=1)
    assert "1 and 1000" in refused.stderr


def test_losses_are_set_for_a_project_and_a_key(running: Up) -> None:
    made = farebox_json("keys", "create", "--project", "demo", "--name", "lossy", cwd=running.folder)
    farebox("keys", "losses", "key", made["key"], "lenient", cwd=running.folder)
    farebox("keys", "losses", "key", made["key"], "default", cwd=running.folder)
    unknown = farebox("keys", "losses", "project", "nobody", "strict", cwd=running.folder, check=1)
    assert "nobody" in unknown.stderr


def test_a_project_says_what_a_second_is_worth(running: Up) -> None:
    said = ["--second-usd", "0.01", "--cache-prompts", "on"]
    told = farebox_json("projects", "routing", "demo", *said, cwd=running.folder)
    assert (told["second_usd"], told["cache_prompts"]) == ("0.01", "on")
    assert farebox_json("projects", "routing", "demo", cwd=running.folder) == told
    told = farebox_json("projects", "routing", "demo", "--second-usd", "default", cwd=running.folder)
    assert (told["second_usd"], told["cache_prompts"]) == ("default", "on")
    farebox("projects", "routing", "demo", "--cache-prompts", "default", cwd=running.folder)
    assert "0.01" in farebox("projects", "routing", "demo", "--second-usd", "soon", cwd=running.folder, check=2).stderr
    assert "USD" in farebox("projects", "routing", "demo", "--second-usd", "-1", cwd=running.folder, check=1).stderr


def test_models_are_listed_without_the_engine(running: Up) -> None:
    rows: list[dict[str, Any]] = farebox_json("models", "list", cwd=running.folder)["models"]
    assert any(row["model"] == "smollm2-135m-instruct" and "to fetch" in row["where"] for row in rows)
    unknown = farebox("models", "pull", "no-such-model", cwd=running.folder, check=3)
    assert "no-such-model" in unknown.stderr
    assert farebox_json("models", "rm", "smollm2-135m-instruct", cwd=running.folder, check=1)["removed"] is False


def test_commands_in_a_folder_without_farebox_say_so_and_make_nothing(tmp_path: Path) -> None:
    for command in (["usage"], ["ledger", "balance"], ["keys", "list"], ["prices", "list"], ["worker", "--once"]):
        refused = farebox(*command, cwd=tmp_path, check=3)
        assert "farebox up" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_migrate_makes_a_database_that_commands_can_use(tmp_path: Path) -> None:
    for _ in range(2):
        assert farebox_json("migrate", cwd=tmp_path)["current"] is True
    assert farebox_json("keys", "list", cwd=tmp_path) == {"keys": []}
    assert farebox_json("worker", "--once", cwd=tmp_path) == {"shipped": 0}


def test_serve_wants_a_redis(tmp_path: Path) -> None:
    assert "REDIS_URL" in farebox("serve", cwd=tmp_path, check=2).stderr


def test_the_command_is_quick_and_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, gateway.cli, gateway.cli.up, gateway.cli.ride, gateway.cli.keys, gateway.cli.usage\n"
            "heavy = {'sqlalchemy', 'litestar', 'uvicorn', 'alembic', 'torch', 'httpx', 'redis', 'pydantic'}\n"
            "print(sorted(heavy & sys.modules.keys()))",
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    """The script is sourced by a real bash, which completes with it."""
    import shutil
    import subprocess

    script = farebox("completion", "bash", cwd=tmp_path).stdout
    (tmp_path / "farebox.bash").write_text(script)
    ask = (
        "source farebox.bash; COMP_WORDS=(farebox {0}); COMP_CWORD={1}; _farebox; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    bash = shutil.which("bash")
    assert bash is not None
    for words, at, wanted in (("le", 1, "ledger"), ("keys re", 2, "revoke"), ("keys create --bud", 3, "--budget")):
        said = subprocess.run(
            [bash, "-c", ask.format(words, at)], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert wanted in said.stdout.split(), said
    assert "#compdef farebox" in farebox("completion", "zsh", cwd=tmp_path).stdout
    assert "complete -c farebox" in farebox("completion", "fish", cwd=tmp_path).stdout
    assert "tcsh" in farebox("completion", "tcsh", cwd=tmp_path, check=2).stderr
