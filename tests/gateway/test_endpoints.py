"""Which dialect and operation each client's path means, as the clients send it."""

import pytest

from gateway.ingress.credentials import presented_key
from gateway.ingress.endpoints import Route, match


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions", Route("openai_chat", "chat")),
        ("/openai/v1/chat/completions", Route("openai_chat", "chat")),
        ("/chat/completions", Route("openai_chat", "chat")),
        ("/v1/completions", Route("openai_completions", "completions")),
        ("/v1/responses", Route("openai_responses", "conversation")),
        ("/v1/messages", Route("anthropic_messages", "chat")),
        ("/v1beta/models/gemini-3-pro:generateContent", Route("gemini", "chat", "gemini-3-pro", False)),
        (
            "/v1/models/local%2Fsmol:streamGenerateContent",
            Route("gemini", "chat", "local/smol", True, envelope="json_array"),
        ),
        ("/v1/models/g:countTokens", Route("gemini", "count_tokens", "g")),
        ("/v1beta/models/g:embedContent", Route("gemini", "embeddings", "g")),
        ("/v1beta/models/g:batchEmbedContents", Route("gemini", "embeddings", "g", batch=True)),
        ("/v1/embeddings", Route("openai_embeddings", "embeddings")),
        ("/openai/deployments/e/embeddings", Route("openai_embeddings", "embeddings", "e")),
        ("/models/embeddings", Route("openai_embeddings", "embeddings")),
        ("/v1/messages/count_tokens", Route("anthropic_messages", "count_tokens")),
        ("/v1/responses/input_tokens", Route("openai_responses", "count_tokens")),
        ("/model/c%3A0/count-tokens", Route("bedrock_converse", "count_tokens", "c:0")),
        ("/model/c%3A0/invoke", Route("anthropic_messages", "chat", "c:0", False, envelope="invoke_model")),
        (
            "/model/c/invoke-with-response-stream",
            Route("anthropic_messages", "chat", "c", True, envelope="invoke_model"),
        ),
        (
            "/projects/p/locations/l/publishers/anthropic/models/claude-x@1:streamRawPredict",
            Route("anthropic_messages", "chat", "claude-x@1", True, envelope="raw_predict"),
        ),
        (
            "/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict",
            Route("anthropic_messages", "count_tokens", envelope="raw_predict"),
        ),
        (
            "/v1beta1/projects/p/locations/us/publishers/google/models/g:generateContent",
            Route("gemini", "chat", "g", False),
        ),
        (
            "/model/us.anthropic.claude-x%3A0/converse",
            Route("bedrock_converse", "chat", "us.anthropic.claude-x:0", False),
        ),
        ("/model/arn%3Aaws%2Fx/converse-stream", Route("bedrock_converse", "chat", "arn:aws/x", True)),
        ("/openai/deployments/my-gpt/chat/completions", Route("openai_chat", "chat", "my-gpt")),
    ],
)
def test_path_names_dialect_and_operation(path: str, route: Route) -> None:
    assert match("POST", path) == route
    assert match("GET", path) is None


def test_a_stored_response_is_read_and_deleted_by_its_path() -> None:
    assert match("GET", "/v1/responses/resp_1") == Route("openai_responses", "retrieve", item="resp_1")
    assert match("DELETE", "/openai/v1/responses/resp_1") == Route("openai_responses", "forget", item="resp_1")


def test_a_gemini_stream_is_an_array_unless_sse_is_asked_for() -> None:
    path = "/v1beta/models/g:streamGenerateContent"
    assert match("POST", path, "key=k&alt=sse") == Route("gemini", "chat", "g", True)
    assert match("POST", path, "alt=json") == Route("gemini", "chat", "g", True, envelope="json_array")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/admin/v1/keys",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/V1/chat/completions",
        "/model/a/b/converse",
    ],
)
def test_other_paths_are_not_for_the_data_plane(path: str) -> None:
    assert match("POST", path) is None


def test_a_model_in_the_path_is_decoded_exactly_once() -> None:
    route = match("POST", "/model/a%252Fb/converse")
    assert route is not None
    assert route.model == "a%2Fb"


@pytest.mark.parametrize(
    ("headers", "query", "key"),
    [
        ({"authorization": "Bearer fbx-1"}, "", "fbx-1"),
        ({"authorization": "bearer  fbx-1 "}, "", "fbx-1"),
        ({"authorization": "Bearer ", "x-api-key": "fbx-2"}, "", "fbx-2"),
        ({"api-key": "fbx-3"}, "", "fbx-3"),
        ({"x-goog-api-key": "fbx-4"}, "", "fbx-4"),
        ({}, "alt=sse&key=fbx-5", "fbx-5"),
        ({"authorization": "Basic Zm9v"}, "", None),
        ({}, "", None),
    ],
)
def test_every_client_carries_its_key_somewhere(headers: dict[str, str], query: str, key: str | None) -> None:
    assert presented_key(headers, query) == key
