"""Reads cases as Vertex' own messages; run by `tests.conformance.aiplatform`, in an environment without anything of
ours. FAREBOX_SUITE_URL, FAREBOX_SUITE_KEY: the gateway, which the package's REST clients then ask.

Source: google-cloud-aiplatform 2.7 (aiplatform_v1), googleapis-common-protos (google.rpc), read 2026-11.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud.aiplatform_v1 import LlmUtilityServiceClient, PredictionServiceClient
from google.cloud.aiplatform_v1.services.llm_utility_service.transports.rest import LlmUtilityServiceRestTransport
from google.cloud.aiplatform_v1.services.prediction_service.transports.rest import PredictionServiceRestTransport
from google.cloud.aiplatform_v1.types import content as contents
from google.cloud.aiplatform_v1.types import prediction_service as messages
from google.cloud.aiplatform_v1.types import tool as tools
from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2  # noqa: F401 - details are found by their descriptors

URL, KEY = (os.environ[f"FAREBOX_SUITE_{name}"] for name in ("URL", "KEY"))
MODEL = "projects/demo/locations/us-central1/publishers/google/models/"
OF: dict[tuple[str, str], Any] = {
    ("request", "generateContent"): messages.GenerateContentRequest,
    ("request", "streamGenerateContent"): messages.GenerateContentRequest,
    ("request", "countTokens"): messages.CountTokensRequest,
    ("request", "predict"): messages.PredictRequest,
    ("request", "embedContent"): messages.EmbedContentRequest,
    ("answer", "generateContent"): messages.GenerateContentResponse,
    ("answer", "streamGenerateContent"): messages.GenerateContentResponse,
    ("answer", "countTokens"): messages.CountTokensResponse,
    ("answer", "predict"): messages.PredictResponse,
    ("answer", "embedContent"): messages.EmbedContentResponse,
}


def fault_of(case: dict[str, str]) -> str | None:
    try:
        body = json.loads(case["body"])
        if case["verb"] == "error":
            return fault_of_error(body)
        if case["kind"] == "answer":
            _without_ids(body)
        kind = OF[case["kind"], case["verb"]]
        json_format.ParseDict(body, kind.pb(kind()))
    except (json_format.ParseError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _without_ids(answer: Any) -> None:
    """Calls have ids in the Gemini API, in v1beta1 of Vertex and in our answers on every path, not in Vertex' v1:
    google-genai reads them there too, and its REST client passes them by."""
    for candidate in answer.get("candidates", ()):
        for part in candidate.get("content", {}).get("parts", ()):
            part.get("functionCall", {}).pop("id", None)


def fault_of_error(body: Any) -> str | None:
    """`status` is the name of `code`, which stands for an HTTP status there."""
    error = body["error"]
    if error["status"] not in code_pb2.Code.keys():  # noqa: SIM118 - an enum wrapper, no mapping
        return f"no such status: {error['status']}"
    if not isinstance(error["code"], int):
        return "code must be the HTTP status"
    rest = {name: value for name, value in error.items() if name != "status"}
    json_format.ParseDict(rest, status_pb2.Status())
    return None


def parsed(cases: list[dict[str, str]]) -> int:
    """Returns: how many faults."""
    seen: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for case in cases:
        seen[f"{case['kind']} {case['verb']}"] += 1
        if (fault := fault_of(case)) is not None:
            faults[fault] += 1
            examples.setdefault(fault, f"{case['what']}\n    {case['body'][:600]}")
    print(", ".join(f"{count} x {name}" for name, count in sorted(seen.items())))
    for fault, count in faults.most_common():
        print(f"FAULT {count} x {fault}\n    e.g. {examples[fault]}")
    return sum(faults.values())


def asked(model: str) -> None:
    """The package's own clients. Raises: AssertionError; what they raise."""
    place = {"host": URL, "credentials": AnonymousCredentials(), "url_scheme": "http"}
    client = PredictionServiceClient(transport=PredictionServiceRestTransport(**place))
    utility = LlmUtilityServiceClient(transport=LlmUtilityServiceRestTransport(**place))
    key = {"metadata": [("authorization", f"Bearer {KEY}")]}
    count = contents.Content(role="user", parts=[contents.Part(text="count from 1 to 5")])
    request = messages.GenerateContentRequest(model=MODEL + model, contents=[count])
    answer = client.generate_content(request, **key)
    assert answer.candidates[0].content.parts[0].text == "1, 2, 3, 4, 5", answer
    assert answer.candidates[0].finish_reason == contents.Candidate.FinishReason.STOP
    assert answer.usage_metadata.total_token_count > 0
    chunks = list(client.stream_generate_content(request, **key))
    said = "".join(part.text for chunk in chunks for each in chunk.candidates for part in each.content.parts)
    assert said == "1, 2, 3, 4, 5", chunks
    declared = tools.FunctionDeclaration(name="get_weather", parameters_json_schema={"type": "object"})
    request.tools = [tools.Tool(function_declarations=[declared])]
    request.contents = [contents.Content(role="user", parts=[contents.Part(text="use get_weather")])]
    answer = client.generate_content(request, **key)
    assert answer.candidates[0].content.parts[0].function_call.name == "get_weather", answer
    counted = utility.count_tokens(
        request={"endpoint": MODEL + model, "model": MODEL + model, "contents": [count]}, **key
    )
    assert counted.total_tokens > 0


def main() -> None:
    path, *models = sys.argv[1:]
    faults = parsed([json.loads(line) for line in Path(path).read_text().splitlines()])
    for model in models:
        try:
            asked(model)
        except Exception as error:
            faults += 1
            print(f"FAULT aiplatform's client asks {model}: {type(error).__name__}: {str(error)[:1500]}")
        else:
            print(f"aiplatform's clients are content with {model}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
