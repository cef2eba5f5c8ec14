"""Providers, credentials, models and aliases by command line, on a database that no gateway serves."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.gateway.cli.conftest import farebox

SECRET = "sk-a-long-secret-value-7d1e"


@pytest.fixture
def place(sqlite_template: Path, tmp_path: Path) -> Path:
    (tmp_path / ".farebox").mkdir()
    shutil.copy(sqlite_template, tmp_path / ".farebox" / "farebox.db")
    (tmp_path / "keys.txt").write_text(f"# of the house\napi_key={SECRET}\n")
    return tmp_path


@pytest.fixture
def upstream() -> Iterator[str]:
    """In a thread of its own: a command here runs to its end."""
    loop, emulator = asyncio.new_event_loop(), OpenAIEmulator(api_key=SECRET)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(emulator.start(), loop).result(30)
    yield f"{emulator.url}/v1"
    asyncio.run_coroutine_threadsafe(emulator.stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


def said(place: Path, *arguments: str, **environ: str) -> Any:
    return json.loads(farebox(*arguments, "--json", cwd=place, **environ).stdout)


def add(place: Path, upstream: str, *more: str, check: int = 0) -> Any:
    return farebox(
        "providers", "add", "house", "--kind", "openai_like", "--base-url", upstream, "--credential", "keys.txt", *more,
        cwd=place, check=check,
    )  # fmt: skip


def test_a_provider_a_model_and_an_alias_are_made_tried_and_removed(place: Path, upstream: str) -> None:
    assert "private network" in add(place, upstream, check=1).stderr
    tried = add(place, upstream, "--allow-private", "--dry-run")
    assert "nothing of this was kept" in tried.stdout
    assert said(place, "providers", "list")["providers"] == []
    add(place, upstream, "--allow-private")
    assert "there already" in add(place, upstream, "--allow-private", check=1).stderr
    add(place, upstream, "--allow-private", "--replace")
    (provider,) = said(place, "providers", "list")["providers"]
    assert (provider["source"], provider["ready"]) == ("database", True)
    assert provider["credential"]["api_key"].startswith(f"...{SECRET[-4:]} (")
    tested = said(place, "providers", "test", "house", "--model", "echo-1")
    assert (tested["ok"], tested["says"]) == (True, "echo-1 answered.")
    farebox("models", "add", "house/echo-1", "--price", "0.15,0.60", "--residency", "eu", cwd=place)
    dry = said(place, "route", "dry-run", "fast", "house/echo-1", "--strategy", "lowest_cost")
    assert [leg["deployment"] for leg in dry["legs"]] == ["house/echo-1"]
    assert said(place, "route", "list")["aliases"] == []
    farebox("route", "set", "fast", "house/echo-1:3", "--fallback", "house/echo-2", cwd=place)
    (alias,) = said(place, "route", "list")["aliases"]
    assert alias["targets"] == ["house/echo-1 (priority 0, weight 3)"]
    explained = said(place, "route", "explain", "fast")
    assert explained["legs"][0]["deployment"] == "house/echo-1"
    assert explained["left_out"] == [{"deployment": "house/echo-2", "why": "no price"}]
    unknown = farebox("route", "explain", "fats", cwd=place, check=1).stderr
    assert "no model 'fats' here" in unknown
    assert "farebox models list" in unknown
    assert "it names 'house/echo-1'" in farebox("models", "remove", "house/echo-1", cwd=place, check=1).stderr
    farebox("route", "remove", "fast", cwd=place)
    farebox("models", "remove", "house/echo-1", cwd=place)
    farebox("providers", "remove", "house", cwd=place)
    farebox("credentials", "remove", "house", cwd=place)
    assert said(place, "credentials", "list")["credentials"] == []


def test_credentials_are_stored_shown_in_part_and_wrapped_anew(place: Path) -> None:
    farebox("credentials", "set", "one", "--kind", "openai", "--credential", "keys.txt", cwd=place)
    farebox("credentials", "set", "two", "--kind", "openai", "--reference", "api_key=env:TWO_KEY", cwd=place)
    listed = farebox("credentials", "list", "--json", cwd=place).stdout
    assert SECRET not in listed
    fields = {row["credential"]: row["fields"]["api_key"] for row in json.loads(listed)["credentials"]}
    assert fields["two"] == "env:TWO_KEY"
    first = said(place, "credentials", "rotate-ring")
    assert (first["rewrapped"], len(first["keys"])) == (2, 2)
    assert said(place, "credentials", "rotate-ring", "--dry-run")["rewrapped"] == 0
    add = ("providers", "add", "openai", "--use", "two")
    assert "the variable is not set" in farebox(*add, cwd=place, check=1).stderr
    farebox(*add, cwd=place, TWO_KEY="sk-two")
    kinds = said(place, "providers", "kinds")["kinds"]
    assert {"bedrock", "openai"} <= {each["kind"] for each in kinds}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("providers", "add", "x", "--kind", "bedrok"), "did you mean bedrock"),
        (("providers", "add", "openai", "--reference", f"api_key={SECRET}"), "not given by reference"),
        (("providers", "add", "openai", "--credential", "none.txt"), "cannot be read"),
        (("providers", "test", "nobody"), "no provider 'nobody'"),
        (("models", "add", "nobody"), "is no PROVIDER/MODEL"),
        (("models", "add", "nobody/m", "--price", "cheap"), "is no price"),
        (("route", "set", "fast"), "goes somewhere"),
        (("route", "set", "fast", "nobody/m"), "no deployment is called"),
        (("credentials", "set", "x", "--kind", "openai", "--reference", "api_key=file:/etc/hosts"), "/run/secrets"),
    ],
)
def test_what_cannot_be_is_told_with_a_fix(place: Path, arguments: tuple[str, ...], says: str) -> None:
    done = farebox(*arguments, cwd=place, check=None)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert "fix:" in done.stderr
    assert SECRET not in done.stderr
