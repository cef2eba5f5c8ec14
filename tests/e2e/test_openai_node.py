"""openai-node, the SDK of the other half of the world, against a whole gateway."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import House
from tests.emulators.openai import OpenAIEmulator

CLIENTS = Path(__file__).with_name("clients")


@pytest.fixture(scope="session")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with openai-node in it."""
    import subprocess

    if shutil.which("npm") is None:
        pytest.skip("openai-node needs Node.js and npm on PATH; CI has both")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "openai.mjs"):
        shutil.copy(CLIENTS / name, folder)
    subprocess.run(
        ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=110
    )
    return folder


async def test_openai_node_streams_and_not_and_fifty_at_once(
    sdk: Path, gateway: House, upstream: OpenAIEmulator
) -> None:
    process = await asyncio.create_subprocess_exec(
        "node", "openai.mjs", gateway.v1, gateway.key, "echo", cwd=sdk, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    seen = json.loads(out)
    assert (seen["whole"], seen["text"]) == ("number-0", "number-1")
    assert seen["usage"]["cost"] > 0
    assert seen["together"] == [f"number-{n}" for n in range(50)]
    assert seen["refusal"] == {"status": 404, "code": "model_not_found"}
    rows = await gateway.rows(at_least=52)
    assert len(rows) == len({row["id"] for row in rows}) == 52
    served = upstream.stats
    assert await gateway.charged_pusd() == served.input_tokens * 1_500_000 + served.output_tokens * 7_250_000
