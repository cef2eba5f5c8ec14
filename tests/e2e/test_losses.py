"""Strict or lenient, by request, key, project and settings: what a provider has no word for is refused, or told."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest

from gateway.errors import NotFound
from tests.e2e.yard import Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: dict[str, Any] = {
    "model": "via-anthropic",
    "messages": [{"role": "user", "content": "Say hello"}],
    "max_tokens": 20,
    "seed": 7,  # for which Anthropic has no word
}


async def asked(yard: Yard, key: str, **headers: str) -> str | None:
    """What was dropped, or None where it was refused by name."""
    async with openai.AsyncOpenAI(base_url=yard.gateway.v1, api_key=key, max_retries=0) as sdk:
        try:
            raw = await sdk.chat.completions.with_raw_response.create(
                **ASK, extra_headers={name.replace("_", "-"): value for name, value in headers.items()}
            )
        except openai.BadRequestError as error:
            assert "seed" in str(error)
            return None
    assert raw.parse().choices[0].message.content
    return raw.headers["x-farebox-dropped"]


async def test_the_nearest_word_wins(yard: Yard) -> None:
    gateway, keys = yard.gateway, yard.gateway.keys
    key = await gateway.new_key()
    public = key.removeprefix("fbx-").partition("_")[0]
    said: dict[str, Any] = {"actor": "test", "now_ns": time.time_ns()}
    assert await asked(yard, key) is None  # the settings: strict
    assert await asked(yard, key, x_farebox_losses="lenient") == "seed"
    await keys.set_losses("project", gateway.project.id, "lenient", **said)
    assert await asked(yard, key) == "seed"
    assert await asked(yard, key, x_farebox_losses="strict") is None
    await keys.set_losses("key", public, "strict", **said)
    assert await asked(yard, key) is None
    await keys.set_losses("key", public, None, **said)
    assert await asked(yard, key) == "seed"
    await keys.set_losses("project", gateway.project.id, None, **said)
    assert await asked(yard, key) is None


async def test_bad_words_are_told(yard: Yard) -> None:
    async with openai.AsyncOpenAI(base_url=yard.gateway.v1, api_key=yard.gateway.key, max_retries=0) as sdk:
        with pytest.raises(openai.BadRequestError, match="strict or lenient"):
            await sdk.chat.completions.create(**ASK, extra_headers={"x-farebox-losses": "perhaps"})
    for scope, ident in (("project", "proj_nobody"), ("key", "nobody")):
        with pytest.raises(NotFound):
            await yard.gateway.keys.set_losses(scope, ident, "strict", actor="test", now_ns=0)  # type: ignore[arg-type]
