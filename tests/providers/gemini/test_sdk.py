"""google-genai reads what the Gemini dialect writes, over a real socket."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types

from providers.neutral import ImagePart, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from tests.providers.speaking import SIGNATURE, Speaker, with_script

WEATHER = types.Tool(
    function_declarations=[
        types.FunctionDeclaration(
            name="get_weather",
            description="The weather.",
            parameters=types.Schema(
                type=types.Type.OBJECT,
                properties={"location": types.Schema(type=types.Type.STRING, nullable=True)},
                required=["location"],
            ),
        )
    ]
)


@pytest.fixture
async def speaker() -> AsyncIterator[Speaker]:
    async with Speaker() as server:
        yield server


def client_at(url: str) -> genai.client.AsyncClient:
    return genai.Client(api_key="k", http_options=types.HttpOptions(base_url=url)).aio


@pytest.fixture
async def client(speaker: Speaker) -> AsyncIterator[genai.client.AsyncClient]:
    client = client_at(speaker.url)
    yield client
    await client.aclose()


async def test_plain(client: genai.client.AsyncClient, speaker: Speaker) -> None:
    config = types.GenerateContentConfig(
        system_instruction="be brief",
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        max_output_tokens=100,
        stop_sequences=["END"],
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        safety_settings=[
            types.SafetySetting(
                category=types.HarmCategory.HARM_CATEGORY_HARASSMENT, threshold=types.HarmBlockThreshold.BLOCK_NONE
            )
        ],
    )
    response = await client.models.generate_content(model="m", contents='say "hello there"', config=config)
    assert response.text == "hello there"
    assert response.candidates is not None
    assert response.candidates[0].finish_reason is types.FinishReason.STOP
    used = response.usage_metadata
    assert used is not None
    assert used.total_token_count == (used.prompt_token_count or 0) + (used.candidates_token_count or 0)
    seen = speaker.decoded[-1]
    assert seen.messages[0].content == (TextPart("be brief"),)
    assert (seen.temperature, seen.top_p, seen.top_k, seen.seed, seen.stop) == (0.5, 0.9, 5, 7, ("END",))
    assert (seen.presence_penalty, seen.frequency_penalty, seen.max_output_tokens) == (0.1, 0.2, 100)
    assert list(seen.extensions["gemini"]) == ["safetySettings"]


async def test_stream(client: genai.client.AsyncClient) -> None:
    prompt = with_script("hi", "reasoning=3 long=5 cite")
    config = types.GenerateContentConfig(thinking_config=types.ThinkingConfig(include_thoughts=True))
    texts, thoughts, last = [], [], None
    async for chunk in await client.models.generate_content_stream(model="m", contents=prompt, config=config):
        last = chunk
        assert chunk.candidates is not None
        for part in (chunk.candidates[0].content.parts if chunk.candidates[0].content else None) or []:
            (thoughts if part.thought else texts).append(part.text or "")
    assert "".join(texts) == "word1 word2 word3 word4 word5"
    assert "".join(thoughts) == "think1 think2 think3"
    assert last is not None
    assert last.usage_metadata is not None
    assert last.usage_metadata.thoughts_token_count == 3
    assert last.candidates is not None
    assert last.candidates[0].finish_reason is types.FinishReason.STOP
    grounding = last.candidates[0].grounding_metadata
    assert grounding is not None
    assert grounding.grounding_chunks is not None
    assert grounding.grounding_chunks[0].web is not None
    assert grounding.grounding_chunks[0].web.uri == "https://example.org/"


async def test_tool_loop_keeps_signatures_and_foreign_seals(client: genai.client.AsyncClient, speaker: Speaker) -> None:
    user = types.Content(role="user", parts=[types.Part(text=with_script("get_weather twice", "reasoning=2 tools=2"))])
    config = types.GenerateContentConfig(tools=[WEATHER])
    first = await client.models.generate_content(model="m", contents=[user], config=config)
    calls = first.function_calls
    assert calls is not None
    assert [call.args for call in calls] == [{"location": "San Francisco"}, {"location": "Paris"}]
    assert first.candidates is not None
    content = first.candidates[0].content
    assert content is not None
    assert content.parts is not None
    assert content.parts[1].thought_signature == base64.b64decode(SIGNATURE)
    answers = types.Content(
        role="user",
        parts=[
            types.Part(
                function_response=types.FunctionResponse(id=call.id, name=call.name, response={"output": f"sunny {n}"})
            )
            for n, call in enumerate(calls)
        ],
    )
    second = await client.models.generate_content(model="m", contents=[user, content, answers], config=config)
    assert second.text == "The tool said: sunny 0; sunny 1"
    _, assistant, results = speaker.decoded[-1].messages
    thought, *called = assistant.content
    assert thought == ReasoningPart("think1 think2", "sealed-by-claude", dialect="anthropic_messages")
    assert [part.signature for part in called if isinstance(part, ToolCallPart)] == [SIGNATURE, SIGNATURE]
    assert [p.tool_call_id for p in results.content if isinstance(p, ToolResultPart)] == [call.id for call in calls]
    assert speaker.decoded[-1].tools[0].parameters == {
        "type": "object",
        "properties": {"location": {"type": ["string", "null"]}},
        "required": ["location"],
    }


async def test_streamed_chunks_given_back_keep_a_foreign_seal(
    client: genai.client.AsyncClient, speaker: Speaker
) -> None:
    """The SDK's chat keeps every chunk: a turn comes back in pieces, and Claude checks its thinking to the letter."""
    chat = client.chats.create(model="m")
    async for _ in await chat.send_message_stream(with_script("hi", "reasoning=3 long=3")):
        pass
    await chat.send_message("again")
    _, turn, _ = speaker.decoded[-1].messages
    thought = ReasoningPart("think1 think2 think3", "sealed-by-claude", dialect="anthropic_messages")
    assert turn.content == (thought, TextPart("word1 word2 word3"))


async def test_function_responses_without_ids_find_their_calls(speaker: Speaker) -> None:
    contents = [
        {"role": "user", "parts": [{"text": "x"}]},
        {"role": "model", "parts": [{"functionCall": {"name": n, "args": {}}} for n in ("a", "b", "a")]},
        {"role": "function", "parts": [{"functionResponse": {"name": n, "response": {}}} for n in ("a", "a", "b")]},
    ]
    async with httpx.AsyncClient() as http:
        found = await http.post(f"{speaker.url}/v1beta/models/m:generateContent", json={"contents": contents})
    assert found.status_code == 200
    _, calls, results = speaker.decoded[-1].messages
    a1, b, a2 = (part.id for part in calls.content if isinstance(part, ToolCallPart))
    assert [p.tool_call_id for p in results.content if isinstance(p, ToolResultPart)] == [a1, a2, b]


async def test_inline_image_and_schema(client: genai.client.AsyncClient, speaker: Speaker) -> None:
    picture = types.Part.from_bytes(data=b"\xfb\xff\xfe", mime_type="image/png")
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_json_schema={"type": "object", "properties": {"name": {}}}
    )
    response = await client.models.generate_content(model="m", contents=[picture, "what is it"], config=config)
    assert response.parsed == {"name": "Alice"}
    image = speaker.decoded[-1].messages[0].content[0]
    assert image == ImagePart("image/png", base64.b64encode(b"\xfb\xff\xfe").decode())


async def test_vertex_paths(speaker: Speaker) -> None:
    from google.oauth2.credentials import Credentials

    options = types.HttpOptions(base_url=speaker.url)
    credentials: Any = Credentials(token="t")  # type: ignore[no-untyped-call]
    vertex = genai.Client(
        vertexai=True, project="p", location="us-central1", credentials=credentials, http_options=options
    )
    response = await vertex.aio.models.generate_content(model="gemini-x", contents="say hello")
    assert response.text == "hello"
    assert speaker.decoded[-1].model == "gemini-x"
    await vertex.aio.aclose()


async def test_count_and_embed(client: genai.client.AsyncClient) -> None:
    counted = await client.models.count_tokens(model="m", contents="one two three")
    assert counted.total_tokens == 6
    config = types.EmbedContentConfig(output_dimensionality=4, task_type="RETRIEVAL_QUERY")
    embedded = await client.models.embed_content(model="m", contents=["a", "b"], config=config)
    assert embedded.embeddings is not None
    assert [len(entry.values or ()) for entry in embedded.embeddings] == [4, 4]


async def test_error_mid_stream_raises(client: genai.client.AsyncClient) -> None:
    async def read() -> None:
        stream = await client.models.generate_content_stream(model="m", contents=with_script("x", "long=20 die"))
        async for _ in stream:
            pass

    with pytest.raises(errors.APIError, match="the upstream died"):
        await read()


async def test_bad_request(client: genai.client.AsyncClient) -> None:
    contents = [types.Content(role="robot", parts=[types.Part(text="x")])]
    with pytest.raises(errors.ClientError, match="role must be user or model") as caught:
        await client.models.generate_content(model="m", contents=contents)
    assert caught.value.status == "INVALID_ARGUMENT"
