"""The guide cannot rot: every block of code in gateway/docs is run, each page against one gateway with every provider
emulated behind it. Blocks of plain text are those that no test machine can run.

What follows the language says where a bash block runs: `postgres` and `sqlite`: with a month of samples in such a
database; `migrate`: in an empty folder; `command`: nothing but `farebox`, run in this process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from gateway.admin.guide import PAGES, pages, render
from gateway.config import load
from tests import services
from tests.e2e.yard import AWS_KEYS, BACKENDS, UPSTREAM_KEY
from tests.gateway.cli.conftest import Up, emulated, environment, farebox, farebox_json, token_of

URL, KEY, TOKEN = "http://127.0.0.1:4000", "fbx-...", "fba-..."
CHECKED = {"bash", "python", "toml", "js", "text"}
NAMES = list(pages())

# What the pages call the models: alias -> provider here, its model there.
MODELS = {
    "gpt-4o-mini": ("openai", "gpt-4o-mini"),
    "text-embedding-3-small": ("openai", "text-embedding-3-small"),
    "claude-sonnet-5": ("anthropic", "claude-sonnet-5"),
    "gemini-2.5-flash": ("gemini", "gemini-2.5-flash"),
    "llama-3.3-70b-versatile": ("groq", "echo-1"),
    "office-chat": ("azure_ai", "echo-1"),
    "my-endpoint": ("sagemaker", "echo-1"),
    "chat": ("openai_like", "echo-1"),
    "smollm2-135m-instruct": ("openai_like", "echo-1"),
    "mistral/mistral-large-latest": ("openai_like", "echo-1"),
    "groq/llama-3.3-70b-versatile": ("groq", "echo-1"),
    "cerebras/llama3.1-8b": ("cerebras", "echo-1"),
    "vertex/gemini-2.5-flash": ("vertex", "gemini-2.5-flash"),
    "bedrock/us.anthropic.claude-sonnet-5": ("bedrock", BACKENDS["bedrock"].chats[-1]),
}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    where: str
    code: str


def blocks(name: str) -> list[Block]:
    text = (PAGES / f"{name}.md").read_text()
    found = []
    for match in re.finditer(r"^```(\S*)[ ]?(\S*)\n(.*?)^```$", text, re.M | re.S):
        line = text[: match.start()].count("\n") + 1
        found.append(Block(name, line, match[1], match[2], match[3]))
    return found


class Place(NamedTuple):
    """A gateway as the pages mean it, and an empty folder."""

    up: Up
    token: str
    folder: Path

    def said(self, code: str) -> str:
        ready = self.up.ready
        return code.replace(URL, ready["base_url"]).replace(KEY, ready["key"]).replace(TOKEN, self.token)


@pytest.fixture(scope="module")
def farebox_on_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "farebox"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway "$@"\n')
    script.chmod(0o755)
    (folder / "python3").symlink_to(sys.executable)
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, str]]:
    """`farebox up` with every provider of the yard behind it."""
    folder = tmp_path_factory.mktemp("docs")
    wanted = sorted({provider for provider, _ in MODELS.values()})
    emulators = {name: BACKENDS[name].emulator() for name in wanted}
    with emulated(*emulators.values()):
        lines = []
        for name in wanted:
            backend = BACKENDS[name]
            credential = backend.credential or {"api_key": UPSTREAM_KEY}
            lines += [f"[providers.{name}]", f'kind = "{backend.kind}"',
                      f'base_url = "{emulators[name].url}{backend.suffix}"']  # fmt: skip
            region = backend.settings.get("region")
            lines += [f'region = "{region}"'] if region else []
            said = ", ".join(f'{key} = "env:UPSTREAM_{key.upper()}"' for key in credential)
            lines += [f"credential = {{ {said} }}"]
            options = backend.settings.get("options", {})
            lines += [f"options = {{ {', '.join(f'{key} = {json.dumps(v)}' for key, v in options.items())} }}"]
        for alias, (provider, model) in MODELS.items():
            lines += ["[[models]]", f'alias = "{alias}"',
                      f'deployments = [{{ provider = "{provider}", model = "{model}", '
                      'price = { input = "1", output = "2" } }]']  # fmt: skip
        (folder / "farebox.toml").write_text("\n".join(lines))
        secrets = {f"UPSTREAM_{key.upper()}": value for key, value in AWS_KEYS.items()}
        secrets |= {"UPSTREAM_API_KEY": UPSTREAM_KEY, "UPSTREAM_ACCESS_TOKEN": UPSTREAM_KEY}
        up = Up(folder, "--no-local", **secrets)
        try:
            up.wait_ready()
            yield up, token_of(up, "owner")["owner"]
        finally:
            up.stop()


@pytest.fixture
def place(there: tuple[Up, str], tmp_path: Path) -> Place:
    return Place(*there, tmp_path)


def test_every_block_says_what_it_is() -> None:
    for name in NAMES:
        for block in blocks(name):
            assert block.language in CHECKED, f"{name}.md line {block.line}: ```{block.language}"
            assert block.where in ("", "postgres", "sqlite", "migrate", "command"), f"{name}.md line {block.line}"


@pytest.mark.parametrize("name", [name for name in NAMES if any(b.language == "toml" for b in blocks(name))])
def test_settings_load(name: str, tmp_path: Path) -> None:
    for block in blocks(name):
        if block.language == "toml":
            (tmp_path / "farebox.toml").write_text(block.code)
            load(tmp_path / "farebox.toml", environ={})


@pytest.mark.parametrize("name", [name for name in NAMES if any(b.language == "python" for b in blocks(name))])
def test_python_runs(name: str, place: Place) -> None:
    """In this process, whose SDKs are loaded already. The page's own exports are in the environment."""
    exported = dict(re.findall(r"\b([A-Z_]+)=(\S+)", "\n".join(b.code for b in blocks(name) if b.language == "bash")))
    names: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        for variable in [each for each in os.environ if each.endswith(("_API_KEY", "_BASE_URL"))]:
            patch.delenv(variable)
        for variable, value in exported.items():
            patch.setenv(variable, place.said(value))
        for block in blocks(name):
            if block.language == "python":
                exec(compile(place.said(block.code), f"{name}.md:{block.line}", "exec"), names)
    assert said.getvalue().strip(), "an example that prints nothing shows nothing"


@pytest.mark.parametrize(
    "name", [name for name in NAMES if any((b.language, b.where) == ("bash", "") for b in blocks(name))]
)
def test_bash_runs(name: str, place: Place, farebox_on_path: Path) -> None:
    """In the data folder of a running gateway; all blocks of the page in one shell."""
    script = "\n".join(place.said(b.code) for b in blocks(name) if (b.language, b.where) == ("bash", ""))
    bash(script, place.up.folder, farebox_on_path)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if any((b.language, b.where) == ("bash", "command") for b in blocks(name))]
)
def test_commands_run(name: str, place: Place) -> None:
    for line in where(name, "command").replace("\\\n", " ").splitlines():
        program, *argv = shlex.split(line)
        assert program == "farebox", line
        # What is referred to has to be there; what it says is asked of the provider alone.
        farebox(*argv, cwd=place.up.folder, **dict.fromkeys(re.findall(r"\benv:(\w+)", line), "{}"))


def bash(script: str, cwd: Path, path: Path, **environ: str) -> None:
    search = {"PATH": f"{path}:{postgres_tools()}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=cwd, env=environment(**search, **environ),
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def postgres_tools() -> Path:
    return services.postgres_bin()


def where(name: str, kind: str) -> str:
    return "\n".join(b.code for b in blocks(name) if (b.language, b.where) == ("bash", kind))


def test_migrating_is_as_it_is_told(place: Place, farebox_on_path: Path) -> None:
    bash(where("migrate-from-litellm", "migrate"), place.folder, farebox_on_path)
    assert (place.folder / "farebox.imported.toml").exists()


def test_a_sqlite_backup_is_restored_to_the_last_posting(place: Place, farebox_on_path: Path) -> None:
    farebox("migrate", cwd=place.folder)
    farebox("demo", "--days", "3", "--a-day", "30", cwd=place.folder)
    before = farebox_json("usage", cwd=place.folder)
    bash(place.said(where("operations", "sqlite")), place.folder, farebox_on_path)
    assert before["total_charge_pusd"] > 0
    assert json.loads((place.folder / "restored.json").read_text()) == before
    assert farebox_json("ledger", "trial", "--data", "restored/.farebox", cwd=place.folder)["sound"] is True


def test_a_postgresql_backup_is_restored_to_the_last_posting(
    databases: services.Databases, tmp_path: Path, farebox_on_path: Path
) -> None:
    with databases.clone() as url, empty_database(url) as restored:
        ours: dict[str, Any] = {"cwd": tmp_path, "DATABASE_URL": url}
        farebox("demo", "--days", "3", "--a-day", "30", **ours)
        before = farebox_json("usage", **ours)
        urls = {"PGURL": plain(url), "PGURL_RESTORED": plain(restored)}
        bash(where("operations", "postgres"), tmp_path, farebox_on_path, **urls)
        assert before["total_charge_pusd"] > 0
        assert json.loads((tmp_path / "restored.json").read_text()) == before


def plain(url: str) -> str:
    return url.replace("postgresql+asyncpg", "postgresql")


@contextlib.contextmanager
def empty_database(beside: str) -> Iterator[str]:
    """A database without a table, on the same server."""
    import asyncpg

    name = "farebox_restored"
    url = re.sub(r"/farebox_test_[^?]*", f"/{name}", beside)
    assert url != beside

    async def run(statement: str) -> None:
        connection = await asyncpg.connect(plain(beside))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    services.in_thread(run(f"CREATE DATABASE {name}"))
    try:
        yield url
    finally:
        services.in_thread(run(f"DROP DATABASE {name} WITH (FORCE)"))


def test_node_runs(place: Place) -> None:
    if shutil.which("npm") is None:
        pytest.skip("NOT RUN: the Node page needs Node.js and npm on PATH; CI has both")
    package = Path(__file__).parents[1] / "e2e" / "clients" / "package.json"
    shutil.copy(package, place.folder)
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=place.folder, check=True, timeout=110, capture_output=True)
    for block in blocks("clients/openai-node"):
        if block.language == "js":
            (place.folder / "page.mjs").write_text(place.said(block.code))
            done = subprocess.run(["node", "page.mjs"], cwd=place.folder, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()


def test_the_gateway_shows_the_guide_without_a_script_or_another_host(there: tuple[Up, str]) -> None:
    base = there[0].ready["base_url"]
    for name in NAMES:
        address = f"{base}/docs" if name == "index" else f"{base}/docs/{name}"
        answer = httpx.get(address)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        (nonce,) = re.findall(r"'nonce-([^']+)'", policy)
        assert f'<style nonce="{nonce}">' in answer.text
        assert "<script" not in answer.text
        for link in re.findall(r'href="([^"]+)"', answer.text):
            if link.startswith("/docs"):
                assert (link.removeprefix("/docs").strip("/").partition("#")[0] or "index") in pages(), (name, link)
            else:
                assert link.startswith("/ui/"), (name, link)
    assert httpx.get(f"{base}/docs/clients/curl.md").status_code == 200
    for strange in ("nowhere", "..%2f..%2fconfig", "%2e%2e/README", "clients", "clients/curl%00"):
        assert httpx.get(f"{base}/docs/{strange}").status_code in (400, 404), strange


def test_raw_html_stays_text_and_links_between_pages_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.admin import guide

    (tmp_path / "clients").mkdir()
    (tmp_path / "index.md").write_text("# A <b> title\n<script>alert(1)</script> [x](clients/a.md#part)\n")
    (tmp_path / "clients" / "a.md").write_text("# A\n[home](../index.md) [out](https://example.com)\n")
    monkeypatch.setattr(guide, "PAGES", tmp_path)
    for cached in (pages, render):
        cached.cache_clear()
    try:
        page = render("index")
        assert "<script>" not in page
        assert "&lt;script&gt;" in page
        assert 'href="/docs/clients/a#part"' in page
        assert 'href="/docs/"' in render("clients/a")
    finally:
        for cached in (pages, render):
            cached.cache_clear()
