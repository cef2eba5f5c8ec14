"""Coding agents as their users start them: Claude Code and Codex, from npm, through a whole gateway.

Each is given a scripted model that calls one of its tools, and must run it, send the result back and print what the
model made of it. The two are 638 MB, so they are installed only where FAREBOX_TEST_AGENTS=1 asks for it; where they
are on PATH already, those are used.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.yard import Yard
from tests.emulators.anthropic import SIGNATURE
from tests.emulators.responses import SEALED
from tests.emulators.server import Emulator, Stats

CLIENTS = Path(__file__).with_name("clients") / "agents"
BACKENDS = ("openai_like", "openai", "anthropic", "gemini", "bedrock")
# What the providers seal their model's thinking with, and want back with the tool's result.
SEALS = {"anthropic": SIGNATURE, "openai": SEALED}
# The model thinks before it calls, so sealed thinking has to find its way back; and some of the prompt was cached.
SCRIPT = "x-script: reasoning=5 cached=40"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Agents:
    claude: str
    codex: str


@pytest.fixture(scope="session")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Agents:
    """Where both programs are."""
    claude, codex = shutil.which("claude"), shutil.which("codex")
    if claude and codex:
        return Agents(claude, codex)
    if os.environ.get("FAREBOX_TEST_AGENTS") != "1" or shutil.which("npm") is None:
        pytest.skip("Claude Code and Codex are not on PATH; FAREBOX_TEST_AGENTS=1 fetches both from npm (638 MB)")
    folder = tmp_path_factory.mktemp("agents")
    shutil.copy(CLIENTS / "package.json", folder)
    subprocess.run(
        ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=300
    )
    modules = folder / "node_modules"
    # Claude Code links its program in a script after the install; it lies in the package of the platform anyway.
    (found,) = modules.glob("@anthropic-ai/claude-code-*/claude")
    return Agents(str(found), str(modules / ".bin" / "codex"))


async def run(command: list[str], home: Path, more: Mapping[str, str]) -> tuple[int | None, str, str]:
    """Exit status, stdout, stderr of a program that sees nothing of this machine's own settings."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), **more}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=home,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


@dataclass
class Books:
    """What all backends served and what was charged, before and after. backend: the one that is asked to work."""

    yard: Yard
    backend: Emulator
    rows: int
    requests: int
    due_pusd: int
    charged_pusd: int

    @classmethod
    async def opened(cls, yard: Yard, backend: str) -> Books:
        rows, charged_pusd = len(await yard.gateway.rows()), await yard.gateway.charged_pusd()
        return cls(yard, yard.backends[backend], rows, _answers(yard), _due_pusd(yard), charged_pusd)

    async def closed(self) -> None:
        """One row for each request, with the tokens that the backend counted, and money that equals them."""
        asked = _answers(self.yard) - self.requests
        assert asked >= 2, "a tool loop takes two requests"
        rows = (await self.yard.gateway.rows(at_least=self.rows + asked))[self.rows :]
        assert len(rows) == asked
        charged_pusd = await self.yard.gateway.charged_pusd() - self.charged_pusd
        assert charged_pusd == _due_pusd(self.yard) - self.due_pusd > 0


def _answers(yard: Yard) -> int:
    return sum(backend.stats.answers for backend in yard.backends.values())


def _due_pusd(yard: Yard) -> int:
    return sum(_worth_pusd(backend.stats) for backend in yard.backends.values())


def _worth_pusd(stats: Stats) -> int:
    """What all that a backend served costs at the yard's prices."""
    cached = stats.cache_read_tokens
    return (stats.input_tokens - cached) * 1_500_000 + cached * 150_000 + stats.output_tokens * 7_250_000


@pytest.mark.parametrize("backend", BACKENDS)
async def test_claude_code_writes_a_file(agents: Agents, yard: Yard, tmp_path: Path, backend: str) -> None:
    books = await Books.opened(yard, backend)
    target = tmp_path / "out.txt"
    call = json.dumps({"file_path": str(target), "content": f"by {backend}\n"})
    settings = ("--output-format", "json", "--allowedTools", "Write", "--model", f"via-{backend}")
    code, out, err = await run(
        [agents.claude, "-p", f"Please write it.\n{SCRIPT}\nx-call: Write {call}", *settings],
        tmp_path,
        {
            "ANTHROPIC_BASE_URL": yard.gateway.url,
            "ANTHROPIC_AUTH_TOKEN": yard.gateway.key,
            "ANTHROPIC_SMALL_FAST_MODEL": f"via-{backend}",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )
    assert code == 0, out + err
    said = json.loads(out)
    assert not said["is_error"], said
    assert target.read_text() == f"by {backend}\n"
    assert said["result"].startswith("The tool said:"), said
    assert "out.txt" in said["result"]
    assert said["num_turns"] == 2
    if backend == "anthropic":
        assert SEALS[backend].encode() in books.backend.last.body
    await books.closed()


@pytest.mark.parametrize("cloud", ["bedrock", "vertex"])
@pytest.mark.parametrize("backend", ["anthropic", "openai_like", "bedrock", "vertex"])
async def test_claude_code_in_a_clouds_clothes(
    agents: Agents, yard: Yard, tmp_path: Path, backend: str, cloud: str
) -> None:
    """CLAUDE_CODE_USE_BEDROCK and _VERTEX: other paths, frames and signatures, the same work. In Bedrock's it first
    tries with one token which Claudes of the list answer, and those tries are charged like any."""
    books = await Books.opened(yard, backend)
    target = tmp_path / "out.txt"
    call = json.dumps({"file_path": str(target), "content": f"by {backend}\n"})
    settings = ("--output-format", "json", "--allowedTools", "Write", "--model", f"via-{backend}")
    key = yard.gateway.key
    worn = {
        "bedrock": {
            "CLAUDE_CODE_USE_BEDROCK": "1",
            "ANTHROPIC_BEDROCK_BASE_URL": yard.gateway.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": key,
        },
        "vertex": {
            "CLAUDE_CODE_USE_VERTEX": "1",
            "ANTHROPIC_VERTEX_BASE_URL": f"{yard.gateway.url}/v1",
            "ANTHROPIC_VERTEX_PROJECT_ID": "demo",
            "CLOUD_ML_REGION": "us-east5",
            "CLAUDE_CODE_SKIP_VERTEX_AUTH": "1",
            "ANTHROPIC_CUSTOM_HEADERS": f"Authorization: Bearer {key}",
        },
    }[cloud]
    code, out, err = await run(
        [agents.claude, "-p", f"Please write it.\n{SCRIPT}\nx-call: Write {call}", *settings],
        tmp_path,
        {
            **worn,
            "ANTHROPIC_SMALL_FAST_MODEL": f"via-{backend}",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )
    assert code == 0, out + err
    said = json.loads(out)
    assert not said["is_error"], said
    assert target.read_text() == f"by {backend}\n"
    assert "out.txt" in said["result"]
    await books.closed()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_codex_runs_a_command(agents: Agents, yard: Yard, tmp_path: Path, backend: str) -> None:
    books = await Books.opened(yard, backend)
    config = (CLIENTS / "codex.toml").read_text()
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").write_text(
        config.replace("GATEWAY", yard.gateway.url).replace("MODEL", f"via-{backend}")
    )
    call = json.dumps({"cmd": f"echo by {backend} > out.txt; echo done-by-shell"})
    settings = ("--skip-git-repo-check", "--sandbox", "danger-full-access")
    code, out, err = await run(
        [agents.codex, "exec", *settings, f"Please run it.\n{SCRIPT}\nx-call: exec_command {call}"],
        tmp_path,
        {"FAREBOX_API_KEY": yard.gateway.key},
    )
    assert code == 0, out + err
    assert (tmp_path / "out.txt").read_text() == f"by {backend}\n"
    assert out.strip().startswith("The tool said:"), out + err
    assert "done-by-shell" in out
    if backend in SEALS:
        assert SEALS[backend].encode() in books.backend.last.body
    await books.closed()


async def test_codex_with_its_hosted_search_is_told_what_the_backend_lacks(
    agents: Agents, yard: Yard, tmp_path: Path
) -> None:
    """Nothing is dropped in silence: OpenAI itself is sent the tool, a host of chats refuses it by name."""
    config = (CLIENTS / "codex.toml").read_text().replace('web_search = "disabled"', "")
    (tmp_path / ".codex").mkdir()
    for backend in ("openai", "openai_like"):
        text = config.replace("GATEWAY", yard.gateway.url).replace("MODEL", f"via-{backend}")
        (tmp_path / ".codex" / "config.toml").write_text(text)
        code, out, err = await run(
            [agents.codex, "exec", "--skip-git-repo-check", 'say "hello"'],
            tmp_path,
            {"FAREBOX_API_KEY": yard.gateway.key},
        )
        if backend == "openai":
            assert (code, out.strip()) == (0, "hello"), out + err
            assert {"type": "web_search", "external_web_access": False} in yard.backends["openai"].last.json()["tools"]
        else:
            assert code != 0
            assert "web_search" in err
