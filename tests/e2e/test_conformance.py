"""llm-comply, a black-box suite of others, asks our gateway as it would ask OpenAI, Anthropic or Google.

Every format is judged over a backend of another dialect than its own, so what is judged is what we write ourselves.
The aliases hold names at which the suite
asks for thinking as well; nothing is skipped. Source: llm-comply 0.5.0, read 2026-11.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.e2e.yard import Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Format, path below the gateway, how many tests it has.
FORMATS = (
    ("openai-chat", "/v1", 9),
    ("open-responses", "/v1", 13),
    ("anthropic", "/v1", 9),
    ("google-genai", "", 9),
    ("google-interactions", "", 9),
)
# Converse takes no conversation that begins with the assistant, as this test's does: the refusal is Bedrock's own.
REFUSED = {("open-responses", "bedrock"): ["assistant-phase"]}
NATIVE = {"openai-chat": "openai", "open-responses": "openai", "anthropic": "anthropic", "google-genai": "gemini"}


async def judged(yard: Yard, form: str, path: str, alias: str) -> dict[str, list[str]]:
    """Status of each test -> what the suite said of it."""
    command = [str(Path(sys.executable).with_name("llm-comply")), "--format", form, "--json"]
    command += ["-u", yard.gateway.url + path, "-k", yard.gateway.key, "-m", alias]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    found: dict[str, list[str]] = {}
    for result in json.loads(out)["results"]:
        found.setdefault(result["status"], []).append(f"{result['id']}: {'; '.join(result.get('errors', ()))[:500]}")
    return found


@pytest.mark.parametrize("backend", ["openai", "anthropic", "gemini", "bedrock"])
@pytest.mark.parametrize(("form", "path", "passing"), FORMATS, ids=[form for form, _, _ in FORMATS])
async def test_llm_comply_finds_nothing(yard: Yard, form: str, path: str, passing: int, backend: str) -> None:
    if NATIVE.get(form) == backend:
        pytest.skip("there the emulator's own bytes go through: its conformance, not ours")
    found = await judged(yard, form, path, f"o3-claude-sonnet-4-{backend}")
    refused = REFUSED.get((form, backend), [])
    failed = found.get("failed", [])
    assert [told.partition(":")[0] for told in failed] == refused, failed
    assert len(found["passed"]) == passing - len(refused)
