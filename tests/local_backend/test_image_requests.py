"""Images as clients send them: a real engine on a real socket, asked by the SDK; what is wrong, and with which."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image

from local_backend.errors import InvalidRequest, QueueFull
from local_backend.images import Room
from tests.local_backend.support import EngineProcess, data_uri, make_tiny_vlm, picture, running_engine, shown

BOUND = 600_000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    folder = tmp_path_factory.mktemp("vlm") / "vlm"
    make_tiny_vlm(folder)
    more = ("--kv-cache-bytes", "24MiB", "--dtype", "float32", "--image-bytes", str(BOUND))
    with running_engine(folder, "--served-name", "vlm", *more) as running:
        yield running


@pytest.fixture
def sdk(engine: EngineProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=engine.url + "/v1", api_key="-", max_retries=0) as made:
        yield made


def user(*parts: Any) -> Any:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def link(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def ask(sdk: OpenAI, *turns: Any, **more: Any) -> Any:
    return sdk.chat.completions.create(
        model="vlm", messages=list(turns), **({"max_tokens": 8, "temperature": 0} | more)
    )


def test_an_image_is_seen_counted_and_streamed(sdk: OpenAI, engine: EngineProcess) -> None:
    one, other = picture(90, 90, seed=1), picture(90, 90, seed=2)
    answers = [ask(sdk, user(shown(image), "What is it?")) for image in (one, other)]
    assert answers[0].choices[0].message.content != answers[1].choices[0].message.content
    usage = answers[0].usage
    assert usage.prompt_tokens_details.image_tokens == 10 * 4
    turns = [user(shown(one), "What is it?")]
    told = httpx.post(engine.url + "/tokenize", json={"messages": turns}).json()
    assert told["count"] == usage.prompt_tokens
    assert told["tokens"].count(259) == 40
    pieces = [c.choices[0].delta.content or "" for c in ask(sdk, *turns, stream=True) if c.choices]
    assert "".join(pieces) == answers[0].choices[0].message.content
    assert ask(sdk, *turns).usage.prompt_tokens_details.cached_tokens > 40
    low = ask(sdk, user(shown(one, detail="low"), "What is it?"))
    assert low.usage.prompt_tokens_details.image_tokens == 4
    both = ask(sdk, user("a", shown(one), "b", shown(other)), {"role": "assistant", "content": "c"}, user("d"), n=2)
    assert both.usage.prompt_tokens_details.image_tokens == 80
    assert both.choices[0].message.content == both.choices[1].message.content


def test_formats_say_the_same_and_first_frames_and_turned_photographs_are_seen_upright(sdk: OpenAI) -> None:
    image = picture(64, 40)
    wanted = ask(sdk, user(shown(image), "?")).choices[0].message.content
    exif = Image.Exif()
    exif[0x0112] = 6
    on_its_side = data_uri(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert ask(sdk, user(link(data_uri(image, "WEBP", lossless=True)), "?")).choices[0].message.content == wanted
    assert ask(sdk, user(link(on_its_side), "?")).choices[0].message.content == wanted
    few = image.quantize(16)
    still = ask(sdk, user(shown(few.convert("RGB")), "?")).choices[0].message.content
    moving = data_uri(few, "GIF", save_all=True, append_images=[picture(64, 40, seed=5).quantize(16)])
    assert ask(sdk, user(link(moving), "?")).choices[0].message.content == still
    assert ask(sdk, user(link(data_uri(image, "JPEG")), "?")).choices[0].finish_reason


def test_responses_and_tools_take_images_too(sdk: OpenAI) -> None:
    image = picture(64, 40)
    url = data_uri(image)
    parts: Any = [{"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "input_text", "text": "?"}]
    answer = sdk.responses.create(
        model="vlm", input=[{"role": "user", "content": parts}], max_output_tokens=8, temperature=0
    )
    assert answer.output_text == ask(sdk, user(link(url), "?")).choices[0].message.content
    tool = {"type": "function", "function": {"name": "see", "parameters": {"type": "object", "properties": {}}}}
    called = {"id": "a", "type": "function", "function": {"name": "see", "arguments": "{}"}}
    turns = [
        user(link(url), "?"),
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "a", "content": "a cat"},
        user(link(url)),
        {"role": "tool", "tool_call_id": "a", "content": "a cat"},
    ]
    assert ask(sdk, *turns, tools=[tool]).usage.prompt_tokens > 80


def png(width: int, height: int) -> bytes:
    """A head that promises so many pixels, and hardly anything behind it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", b"\0" * 64))
    told = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(told)


def raw(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def cut() -> bytes:
    out = io.BytesIO()
    picture(80, 80).save(out, "PNG")
    return out.getvalue()[:9000]


BAD: dict[str, tuple[Any, str, str]] = {
    "an address": (link("https://example.com/cat.png"), "unsupported", "data:image/png;base64,"),
    "a file's": (link("file:///etc/passwd"), "invalid_image", "data:image/png;base64,"),
    "not base64": (link("data:image/png;base64,%%%"), "invalid_image", "base64"),
    "not said to be base64": (link("data:image/png,abc"), "invalid_image", "base64"),
    "no image": (link(raw(b"hello")), "invalid_image", "PNG, JPEG, WebP"),
    "empty": (link("data:image/png;base64,"), "invalid_image", "PNG, JPEG, WebP"),
    "a format of others": (link(data_uri(picture(8, 8), "TIFF")), "invalid_image", "PNG, JPEG, WebP"),
    "cut short": (link(raw(cut())), "invalid_image", "cannot be read"),
    "a bomb": (link(raw(png(12_000, 12_000))), "image_too_large", "12000 x 12000"),
    "a larger bomb": (link(raw(png(60_000, 60_000))), "image_too_large", "pixels"),
    "no url": ({"type": "image_url"}, "invalid_request", "image_url"),
    "unknown detail": (shown(picture(8, 8), detail="best"), "invalid_request", "low or high"),
    "audio": ({"type": "input_audio", "input_audio": {}}, "unsupported", "images in turns of users"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_an_image_is_said_and_of_which(case: str, sdk: OpenAI) -> None:
    part, code, says = BAD[case]
    with pytest.raises(BadRequestError, match=says) as refused:
        ask(sdk, user(shown(picture(20, 20)), "and", part))
    assert refused.value.code == code
    assert str(refused.value.param).startswith("messages[0].content[2]")
    assert ask(sdk, user(shown(picture(20, 20)))).choices[0].finish_reason


def test_what_a_prompt_cannot_hold_is_refused_before_a_pixel_is_decoded(sdk: OpenAI) -> None:
    whole = shown(picture(20, 20))
    with pytest.raises(BadRequestError, match="maximum context length") as refused:
        ask(sdk, user(*[whole] * 25, link(raw(png(5000, 5000)))))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError, match="maximum context length"):  # the last one is not opened
        ask(sdk, user(*[shown(picture(2, 2), detail="low")] * 256, link("data:,")))
    large = "data:image/png;base64," + "A" * 700_000
    heavy = data_uri(picture(500, 500))
    with pytest.raises(BadRequestError, match="images of this request") as refused:
        ask(sdk, user(link(heavy)))
    assert refused.value.code == "image_too_large"
    with pytest.raises(BadRequestError, match="PNG, JPEG"):
        ask(sdk, user(link(large)))
    with pytest.raises(BadRequestError, match="places"):
        ask(sdk, user("What does <image> mean?"))
    with pytest.raises(BadRequestError, match="images in turns of users"):
        ask(sdk, {"role": "system", "content": [whole]}, user("?"))


def test_what_is_told_of_the_model(engine: EngineProcess) -> None:
    card = httpx.get(engine.url + "/v1/models").json()["data"][0]
    assert card["capabilities"]["images"] is True


def test_memory_for_images_is_bounded_and_given_back() -> None:
    room = Room(100)
    with room.take(60):
        with pytest.raises(QueueFull, match="60 bytes"), room.take(41):
            pass
        with room.take(40):
            assert room.taken == 100
    assert room.taken == 0
    with pytest.raises(InvalidRequest), room.take(101):
        pass
