"""An image by the SDK, through the gateway, to an engine of ours with eyes; one without is not asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from msgspec.structs import replace
from PIL import Image

from gateway.config import ModelSettings, TimeoutSettings
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.local_backend.support import EngineProcess, make_tiny_model, make_tiny_vlm, running_engine, shown

WITHIN_S = 100
# An engine's first step on a busy machine.
PATIENT = TimeoutSettings(first_byte_s=WITHIN_S, between_bytes_s=WITHIN_S)
LIMITS = ("--dtype", "float32", "--kv-cache-bytes", "24MiB")
SEEING = frozenset({"image_input", "tools", "logprobs"})


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EngineProcess]]:
    folder = tmp_path_factory.mktemp("engines")
    make_tiny_vlm(folder / "vlm")
    make_tiny_model(folder / "tiny")
    with running_engine(folder / "vlm", *LIMITS) as seeing, running_engine(folder / "tiny", *LIMITS) as blind:
        cards = [httpx.get(f"{engine.url}/v1/models").json()["data"][0] for engine in (seeing, blind)]
        assert [card["capabilities"]["images"] for card in cards] == [True, False]
        yield {"vlm": seeing, "tiny": blind}


def both(alias: str) -> ModelSettings:
    """The blind one is tried first."""
    entry = model(alias, "blind/tiny", "seeing/vlm")
    blind, seeing = entry.deployments
    return replace(entry, deployments=(blind, replace(seeing, capabilities=SEEING)))


def asked(colour: str) -> Any:
    image = shown(Image.new("RGB", (90, 60), colour))
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]


async def ask(gateway: House, alias: str, messages: Any) -> Any:
    async with openai.AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0, timeout=WITHIN_S) as sdk:
        return await sdk.chat.completions.with_raw_response.create(
            model=alias, messages=messages, max_tokens=8, temperature=0
        )


@pytest.mark.timeout(300)
async def test_an_image_reaches_the_engine_that_sees_and_no_other(
    engines: dict[str, EngineProcess], tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    providers = {
        name: provider("local", f"{engines[own].url}/v1") for name, own in (("seeing", "vlm"), ("blind", "tiny"))
    }
    url = f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}"
    models = (both("either"), model("blind", "blind/tiny"))
    async with house(settings_for(tmp_path, url, redis_url, providers, models, timeouts=PATIENT)) as gateway:
        answers = [await ask(gateway, "either", asked(colour)) for colour in ("red", "blue")]
        assert [answer.headers["x-farebox-provider"] for answer in answers] == ["seeing", "seeing"]
        one, other = (answer.parse() for answer in answers)
        assert one.choices[0].message.content != other.choices[0].message.content
        assert one.usage.prompt_tokens > 28  # seven tiles of four
        plain = await ask(gateway, "either", [{"role": "user", "content": "Hello."}])
        assert plain.headers["x-farebox-provider"] == "blind"
        with pytest.raises(openai.BadRequestError, match="image_input"):
            await ask(gateway, "blind", asked("red"))
        broken = asked("red")
        broken[0]["content"][1]["image_url"]["url"] = "data:image/png;base64,aGVsbG8="
        with pytest.raises(openai.BadRequestError, match="image cannot be read"):
            await ask(gateway, "either", broken)
