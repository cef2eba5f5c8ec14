"""Sound and images: openai-python, its Azure client and groq-python ask; each is charged by what its price names."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import groq
import httpx
import openai
import pytest
import pytest_asyncio

from billing.db import create_engine, writing
from billing.pricelist import set_price
from billing.usage import Meter
from gateway.config import PriceSettings
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators import scripted
from tests.emulators.media import IMAGE_TOKENS, TOKENS_PER_S, MediaEmulator, wav

pytestmark = pytest.mark.asyncio(loop_scope="module")

INPUT_PUSD, OUTPUT_PUSD = 1_500_000, 7_250_000
SECOND_PUSD, CHARACTER_PUSD, PIECE_PUSD = 10**8, 15 * 10**6, 4 * 10**10
GRADED_PUSD = {"hd/1024x1792": 12 * 10**10, "hd/*": 8 * 10**10, "*/512x512": 2 * 10**10, "batch": 1}


def per(unit: Any, usd: str) -> PriceSettings:
    return PriceSettings(per={unit: Decimal(usd)})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[MediaEmulator]:
    async with MediaEmulator() as emulator:
        yield emulator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def studio(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str, backend: MediaEmulator
) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("media")
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        providers = {
            "openai": provider("openai", f"{backend.url}/v1"),
            "groq": provider("groq", f"{backend.url}/openai/v1"),
            "azure": provider("azure_ai", backend.url, {"api_key": "sk-test"}, options={"api_version": "2025-04-01"}),
            "cerebras": provider("cerebras", f"{backend.url}/v1"),
        }
        by_second, by_character = per("seconds", "0.0001"), per("characters", "0.000015")
        models = (
            model("whisper", "openai/whisper-1", price=by_second),
            model("whisper-groq", "groq/whisper-large-v3", price=by_second),
            model("whisper-azure", "azure/whisper", price=by_second),
            model("whisper-spare", "openai/fault-500", "groq/whisper-large-v3", price=by_second),
            model("scribe", "openai/gpt-4o-transcribe"),
            model("scribe-fails", "openai/4o-that-fails"),
            model("tts", "openai/tts-1", price=by_character),
            model("tts-cut", "openai/fault-cut", price=by_character),
            model("speaker", "openai/gpt-4o-mini-tts"),
            model("painter", "openai/gpt-image-1"),
            model("painter-by-piece", "openai/dall-e-3", price=per("images", "0.04")),
            model("painter-spare", "openai/fault-500", "openai/dall-e-2", price=per("images", "0.04")),
            model("unpriced", "openai/whisper-2", price=per("images", "0.04")),
            model("deaf", "cerebras/llama", price=by_second),
        )
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        engine = create_engine(url)
        async with writing(engine) as db:
            for variant, pusd in GRADED_PUSD.items():
                prices = {Meter.IMAGES: pusd}
                for what in ("dall-e-3", "fault-500"):
                    await set_price(db, "openai", what, prices, prices, at_ns=time.time_ns(), variant=variant)
        await engine.dispose()
        yield await stack.enter_async_context(house(settings_for(folder, url, _valkey, providers, models)))


def sdk_of(house: House, key: str | None = None) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=house.v1, api_key=key or house.key, max_retries=0)


async def charged(house: House, before: int) -> tuple[int, dict[str, Any]]:
    return await house.charged_pusd() - before, (await house.rows())[-1]


@pytest.mark.parametrize("form", ["json", "verbose_json", "text", "vtt"])
async def test_whisper_is_charged_by_the_second(studio: House, form: Any) -> None:
    before = await studio.charged_pusd()
    answer = await sdk_of(studio).audio.transcriptions.create(
        model="whisper", file=("a.wav", wav(2.5)), response_format=form, language="en"
    )
    said = answer if isinstance(answer, str) else answer.text
    assert "bytes of silence" in said
    pusd, row = await charged(studio, before)
    assert (pusd, row["quantities"]) == (3 * SECOND_PUSD, {"requests": 1, "seconds": 3})
    assert row["estimated"] is (form in ("text", "vtt"))  # which tell nothing; the file itself says how long it is


async def test_translations_and_groqs_sdk(studio: House) -> None:
    before = await studio.charged_pusd()
    sdk = groq.AsyncGroq(base_url=studio.url, api_key=studio.key, max_retries=0)
    file = ("a.wav", wav(1.0))
    assert (await sdk.audio.transcriptions.create(model="whisper-groq", file=file)).text
    assert (await sdk.audio.translations.create(model="whisper-groq", file=file)).text
    assert (await charged(studio, before))[0] == 2 * SECOND_PUSD


async def test_azures_client_names_the_deployment_in_the_path(studio: House, backend: MediaEmulator) -> None:
    sdk = openai.AsyncAzureOpenAI(
        azure_endpoint=studio.url, api_key=studio.key, api_version="2025-04-01-preview", max_retries=0
    )
    answer = await sdk.audio.transcriptions.create(model="whisper-azure", file=("a.wav", wav(1.0)))
    assert answer.text
    assert backend.last.path == "/openai/deployments/whisper/audio/transcriptions"
    assert backend.last.query == {"api-version": "2025-04-01"}


async def test_a_transcript_by_the_token_whole_and_streamed(studio: House, backend: MediaEmulator) -> None:
    text = f"{len(wav(2.0))} bytes of silence"
    wanted = {"requests": 1, "input_tokens": 3, "input_audio_tokens": 20, "output_tokens": scripted.count(text)}
    for stream in (False, True):
        before = await studio.charged_pusd()
        answer: Any = await sdk_of(studio).audio.transcriptions.create(
            model="scribe", file=("a.wav", wav(2.0)), stream=stream
        )
        said = "".join([e.delta async for e in answer if e.type == "transcript.text.delta"]) if stream else answer.text
        assert said == text
        pusd, row = await charged(studio, before)
        assert row["quantities"] == wanted
        assert not row["estimated"]
        assert pusd == (2 * TOKENS_PER_S + 3) * INPUT_PUSD + scripted.count(text) * OUTPUT_PUSD


async def test_another_host_takes_over(studio: House) -> None:
    answer = await sdk_of(studio).audio.transcriptions.create(model="whisper-spare", file=("a.wav", wav(1.0)))
    assert answer.text
    assert (await studio.rows())[-1]["deployment"] == "groq/whisper-large-v3"


async def test_an_error_in_a_stream_reaches_the_client_and_is_charged_as_estimated(studio: House) -> None:
    stream = await sdk_of(studio).audio.transcriptions.create(
        model="scribe-fails", file=("a.wav", wav(1.0)), stream=True
    )
    with pytest.raises(openai.APIError, match="server had an error"):
        async for _ in stream:
            pass
    row = (await studio.rows())[-1]
    assert (row["outcome"], row["estimated"]) == ("upstream_failed", True)


async def test_speech_by_the_character(studio: House) -> None:
    before = await studio.charged_pusd()
    async with sdk_of(studio).audio.speech.with_streaming_response.create(
        model="tts", voice="alloy", input="twenty characters ok"
    ) as answer:
        sound = await answer.read()
        assert answer.headers["content-type"] == "audio/wav"
    assert sound == wav(2.0)
    pusd, row = await charged(studio, before)
    assert (pusd, row["quantities"]) == (20 * CHARACTER_PUSD, {"requests": 1, "characters": 20})
    assert not row["estimated"]


async def test_speech_by_the_token_told_or_heard(studio: House) -> None:
    sdk = sdk_of(studio)
    async with sdk.audio.speech.with_streaming_response.create(
        model="speaker", voice="alloy", input="twenty characters ok", stream_format="sse"
    ) as answer:
        assert b"speech.audio.done" in await answer.read()
    row = (await studio.rows())[-1]
    assert (row["quantities"], row["estimated"]) == (
        {"requests": 1, "input_tokens": 7, "output_audio_tokens": 40},
        False,
    )
    await sdk.audio.speech.create(model="speaker", voice="alloy", input="twenty characters ok")
    row = (await studio.rows())[-1]
    assert row["estimated"]  # two seconds of sound, at what speech usually is
    assert row["quantities"]["output_audio_tokens"] in (42, 43)


async def test_a_sound_that_is_cut_does_not_look_whole(studio: House) -> None:
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError, Exception)) as raised:
        await sdk_of(studio).audio.speech.create(model="tts-cut", voice="alloy", input="x" * 100)
    assert not isinstance(raised.value, openai.APIStatusError)
    assert (await studio.rows(at_least=1))[-1]["outcome"] == "upstream_failed"


async def test_images_by_the_token_and_by_the_piece(studio: House) -> None:
    sdk = sdk_of(studio)
    before = await studio.charged_pusd()
    answer = await sdk.images.generate(model="painter", prompt="a whale", n=2, quality="low", size="1024x1024")
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "").startswith(b"\x89PNG")
    pusd, row = await charged(studio, before)
    text = scripted.count("a whale")
    assert row["quantities"] == {"requests": 1, "input_tokens": text, "output_image_tokens": 2 * IMAGE_TOKENS}
    assert pusd == text * INPUT_PUSD + 2 * IMAGE_TOKENS * OUTPUT_PUSD
    before = await studio.charged_pusd()
    await sdk.images.generate(model="painter-by-piece", prompt="a whale", n=3)
    assert (await charged(studio, before))[0] == 3 * PIECE_PUSD


@pytest.mark.parametrize(
    ("asked", "variant"),
    [
        ({"quality": "hd", "size": "1024x1792"}, "hd/1024x1792"),
        ({"quality": "hd", "size": "1024x1024"}, "hd/*"),
        ({"quality": "hd"}, "hd/*"),
        ({"quality": "standard", "size": "512x512"}, "*/512x512"),
        ({"size": "512x512"}, "*/512x512"),
        ({"quality": "auto", "size": "auto"}, ""),
        ({"quality": "batch", "size": "1024x1024"}, ""),  # no word of a client's names another tier's price
        ({}, ""),
    ],
)
async def test_an_image_costs_what_its_quality_and_size_do(studio: House, asked: dict[str, Any], variant: str) -> None:
    before = await studio.charged_pusd()
    await sdk_of(studio).images.generate(model="painter-by-piece", prompt="a whale", n=2, **asked)
    pusd, row = await charged(studio, before)
    assert (pusd, row["variant"]) == (2 * GRADED_PUSD.get(variant, PIECE_PUSD), variant)
    assert row["hold_pusd"] == pusd


async def test_a_spare_without_such_a_price_is_charged_at_its_own(studio: House) -> None:
    before = await studio.charged_pusd()
    await sdk_of(studio).images.generate(model="painter-spare", prompt="a whale", quality="hd", size="1024x1792")
    pusd, row = await charged(studio, before)
    assert (pusd, row["variant"], row["model"]) == (PIECE_PUSD, "", "dall-e-2")


async def test_a_streamed_image_and_an_edit(studio: House) -> None:
    sdk = sdk_of(studio)
    stream = await sdk.images.generate(model="painter", prompt="a whale", stream=True, partial_images=1)
    assert [event.type async for event in stream] == ["image_generation.partial_image", "image_generation.completed"]
    assert (await studio.rows())[-1]["quantities"]["output_image_tokens"] == IMAGE_TOKENS
    await sdk.images.edit(model="painter", prompt="a whale", image=("a.png", b"\x89PNG", "image/png"))
    row = (await studio.rows())[-1]
    assert row["quantities"]["input_image_tokens"] == 100
    assert not row["estimated"]


async def test_a_budget_that_does_not_cover_it_refuses_before_anything_is_sent(
    studio: House, backend: MediaEmulator
) -> None:
    poor = sdk_of(studio, await studio.new_key(budget_pusd=9 * SECOND_PUSD))
    sent = len(backend.requests)
    with pytest.raises(openai.RateLimitError, match="budget"):
        await poor.audio.transcriptions.create(model="whisper", file=("a.wav", wav(10.0)))
    assert len(backend.requests) == sent
    assert (await poor.audio.transcriptions.create(model="whisper", file=("a.wav", wav(8.9)))).text


@pytest.mark.parametrize(
    ("alias", "status", "says"),
    [("unpriced", 403, "no price"), ("deaf", 400, "transcriptions"), ("unheard-of", 404, "unheard-of")],
)
async def test_who_cannot_is_refused_by_name(studio: House, alias: str, status: int, says: str) -> None:
    with pytest.raises(openai.APIStatusError, match=says) as refused:
        await sdk_of(studio).audio.transcriptions.create(model=alias, file=("a.wav", wav(1.0)))
    assert refused.value.status_code == status


FORM = "multipart/form-data; boundary=b"


def form(*parts: str, end: str = "--b--\r\n") -> bytes:
    return ("".join(f"--b\r\n{part}\r\n" for part in parts) + end).encode()


MODEL = 'Content-Disposition: form-data; name="model"\r\n\r\nwhisper'
FILE = 'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nabc'


@pytest.mark.parametrize(
    ("path", "content_type", "body", "says"),
    [
        ("audio/transcriptions", "application/json", b"{}", "multipart/form-data"),
        ("audio/transcriptions", FORM, b"no form at all", "boundary"),
        ("audio/transcriptions", FORM, form(MODEL, end=""), "boundary"),
        ("audio/transcriptions", FORM, form(MODEL), "file"),
        ("audio/transcriptions", FORM, form(FILE), "model"),
        ("audio/transcriptions", FORM, form(MODEL, MODEL, FILE), "twice"),
        ("audio/transcriptions", FORM, form(MODEL, "no head"), "without a head"),
        ("audio/transcriptions", FORM, form(MODEL, FILE, FILE), "file"),
        ("audio/speech", "application/json", b'{"model": "tts"}', "input"),
        ("audio/speech", "application/json", b'{"model": "tts", "input": 3}', "input"),
        ("audio/speech", "application/json", b"[]", "JSON object"),
        ("images/generations", "application/json", b'{"model": "painter"}', "prompt"),
        ("images/generations", "application/json", b'{"model": "painter", "prompt": "x", "n": 11}', "n must be"),
        ("images/generations", "application/json", b'{"model": "painter", "prompt": "x", "n": "a"}', "n must be"),
    ],
)
async def test_bad_input_is_told_and_costs_nothing(
    studio: House, path: str, content_type: str, body: bytes, says: str
) -> None:
    rows = len(await studio.rows())
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {studio.key}"}) as http:
        answer = await http.post(f"{studio.v1}/{path}", content=body, headers={"content-type": content_type})
    assert answer.status_code == 400, answer.text
    assert says in json.loads(answer.text)["error"]["message"]
    assert len(await studio.rows()) == rows
