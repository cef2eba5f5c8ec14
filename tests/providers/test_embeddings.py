"""Embeddings: as sent, as answered, and as openai-python reads them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from providers import registry
from providers.base import Credential, Embedder, EmbeddingCall, Endpoint
from providers.dialects.openai_embeddings import DIALECT
from providers.errors import AuthFailed, BadRequest, Unsupported, WireError
from providers.neutral import EmbeddingRequest, EmbeddingResponse, Usage
from providers.transport.http1 import Http1Transport
from tests.emulators.openai import OpenAIEmulator, vector
from tests.emulators.server import Emulator, Out, Request


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


@pytest.mark.parametrize(
    ("given", "found"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_inputs_of_every_kind(given: Any, found: tuple[Any, ...]) -> None:
    request = DIALECT.decode_request(body(input=given, dimensions=4))
    assert request == EmbeddingRequest("m", found, 4)
    assert DIALECT.decode_request(json.dumps(DIALECT.encode_request(request, model="m").body).encode()) == request


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (body(), "input"),
        (body(input=[]), "input"),
        (body(input=["a", 1]), "input"),
        (body(input=3), "input"),
        (body(input="a", model=None), "model"),
        (body(input="a", dimensions=0), "dimensions"),
        (body(input="a", encoding_format="hex"), "encoding_format"),
    ],
)
def test_bad_requests_name_the_field(raw: bytes, param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        DIALECT.decode_request(raw)
    assert raised.value.param == param


def test_a_task_cannot_be_said() -> None:
    request = EmbeddingRequest("m", ("a",), task="search_query")
    with pytest.raises(Unsupported, match="task"):
        DIALECT.encode_request(request, model="m")
    assert DIALECT.encode_request(request, model="m", strict=False).dropped == ("task",)


@pytest.mark.parametrize("embedding", ["???", "AAA=", "AAAAAAA="])
def test_broken_vectors(embedding: str) -> None:
    with pytest.raises(WireError):
        DIALECT.decode_response(json.dumps({"data": [{"embedding": embedding}]}).encode())


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("forward", [False, True])
async def test_through_an_adapter(encoding: str, forward: bool) -> None:
    transport = Http1Transport()
    async with OpenAIEmulator() as emulator:
        endpoint = Endpoint("openai", emulator.url + "/v1", None, Credential({"api_key": "sk-test"}), {"project": "p1"})
        provider = registry.create(endpoint, transport)
        assert isinstance(provider, Embedder)
        raw = body(input=["a b", "c"], encoding_format=encoding, user="u")
        call = EmbeddingCall(DIALECT.name if forward else "other", DIALECT.decode_request(raw), raw, "r")
        answer = await provider.embed(call, "emb-1")
        found = answer.response
        assert found.vectors == (tuple(vector("a b", 8)), tuple(vector("c", 8)))
        assert found.usage.input_tokens == emulator.stats.input_tokens == 3
        assert emulator.last.json()["model"] == "emb-1"
        assert emulator.last.headers["openai-project"] == "p1"
        wrong = registry.create(Endpoint("openai", emulator.url + "/v1"), transport)
        assert isinstance(wrong, Embedder)
        with pytest.raises(AuthFailed):
            await wrong.embed(call, "emb-1")
    groq = registry.create(Endpoint("groq"), transport)
    assert isinstance(groq, Embedder)
    with pytest.raises(Unsupported):
        await groq.embed(call, "emb-1")
    await transport.aclose()


async def test_openai_python_reads_both_encodings() -> None:
    class Face(Emulator):
        async def handle(self, request: Request, out: Out) -> None:
            asked = DIALECT.decode_request(request.body)
            vectors = ((0.5, -0.25), (1.0, 0.0))
            await out.whole(200, DIALECT.encode_response(EmbeddingResponse("m", vectors, Usage(4)), asked))

    async with Face() as face:
        # By default the SDK asks for base64 and unpacks it, but its strict mode refuses the string it asked for.
        for options, strict in (({}, False), ({"encoding_format": "float"}, True)):
            async with openai.AsyncOpenAI(
                base_url=face.url + "/v1", api_key="k", _strict_response_validation=strict
            ) as sdk:
                got = await sdk.embeddings.create(model="m", input=["a", "b"], **options)  # type: ignore[arg-type]
            assert [entry.embedding for entry in got.data] == [[0.5, -0.25], [1.0, 0.0]]
            assert got.usage.total_tokens == 4
