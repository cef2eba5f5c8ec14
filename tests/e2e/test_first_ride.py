"""The main job, whole: an OpenAI SDK asks, an answer comes, and the same number stands everywhere."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal

import httpx
import openai
import pytest

from tests.e2e.harness import House, until
from tests.emulators.openai import OpenAIEmulator

QUESTION = [{"role": "user", "content": "count from 1 to 5"}]


def client(gateway: House, key: str | None = None) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=gateway.v1, api_key=key or gateway.key, max_retries=0, _strict_response_validation=True
    )


async def test_answers_stream_and_whole_are_billed_to_the_last_pico_dollar(
    gateway: House, upstream: OpenAIEmulator
) -> None:
    told = Decimal(0)
    async with client(gateway) as sdk:
        for _ in range(3):
            raw = await sdk.chat.completions.with_raw_response.create(model="echo", messages=QUESTION)  # type: ignore[arg-type]
            assert raw.parse().choices[0].message.content == "1, 2, 3, 4, 5"
            told += Decimal(raw.headers["x-farebox-cost-usd"])
            assert raw.headers["x-request-id"].startswith("req_")
            stream = await sdk.chat.completions.create(
                model="echo",
                messages=QUESTION,  # type: ignore[arg-type]
                stream=True,
                stream_options={"include_usage": True},
            )
            text, cost = "", None
            async for chunk in stream:
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                if chunk.usage is not None:
                    cost = (chunk.usage.model_extra or {})["cost"]
            assert text == "1, 2, 3, 4, 5"
            told += Decimal(repr(cost))
    rows = await gateway.rows()
    assert [row["outcome"] for row in rows] == ["completed"] * 6
    assert not any(row["estimated"] for row in rows)
    by_price = sum(int(row["charge_pusd"]) for row in rows)
    assert by_price == await gateway.charged_pusd() == int(told * 10**12)
    served = upstream.stats
    assert by_price == served.input_tokens * 1_500_000 + served.output_tokens * 7_250_000


async def test_the_client_sees_no_usage_chunk_that_it_did_not_ask_for(gateway: House) -> None:
    async with client(gateway) as sdk:
        stream = await sdk.chat.completions.create(model="echo", messages=QUESTION, stream=True)  # type: ignore[arg-type]
        chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    (row,) = await gateway.rows()
    assert int(row["charge_pusd"]) > 0
    assert not row["estimated"]


async def test_fifty_at_once_each_get_their_own_answer_and_their_own_row(
    gateway: House, upstream: OpenAIEmulator
) -> None:
    async with client(gateway) as sdk:

        async def ask(n: int) -> str:
            message = {"role": "user", "content": f"say number-{n}"}
            if n % 2:
                answer = await sdk.chat.completions.create(model="echo", messages=[message])  # type: ignore[list-item]
                return answer.choices[0].message.content or ""
            stream = await sdk.chat.completions.create(model="echo", messages=[message], stream=True)  # type: ignore[list-item]
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        answers = await asyncio.gather(*(ask(n) for n in range(50)))
    assert answers == [f"number-{n}" for n in range(50)]
    rows = await gateway.rows()
    assert len({row["id"] for row in rows}) == 50
    served = upstream.stats
    assert await gateway.charged_pusd() == served.input_tokens * 1_500_000 + served.output_tokens * 7_250_000


async def test_a_spent_budget_refuses_in_the_clients_words_and_overdraws_nothing(
    gateway: House, upstream: OpenAIEmulator
) -> None:
    budget = 2_000_000_000  # 0.2 cent
    key = await gateway.new_key(budget_pusd=budget)
    async with client(gateway, key) as sdk:
        refusal: openai.RateLimitError | None = None
        for _ in range(200):
            try:
                await sdk.chat.completions.create(model="echo", messages=QUESTION, max_tokens=20)  # type: ignore[arg-type]
            except openai.RateLimitError as error:
                refusal = error
                break
    assert refusal is not None
    assert refusal.code == "insufficient_quota"
    assert refusal.response.headers["x-should-retry"] == "false"
    spent = await gateway.charged_pusd()
    assert 0 < spent <= budget
    # What is left would not cover one more request's stated worst case.
    assert budget - spent < 20 * 7_250_000 + 100 * 1_500_000
    before = len(upstream.requests)
    async with client(gateway, key) as sdk:
        with pytest.raises(openai.RateLimitError):
            await sdk.chat.completions.create(model="echo", messages=QUESTION, max_tokens=20)  # type: ignore[arg-type]
    assert len(upstream.requests) == before


async def test_an_answer_of_unstated_length_is_cut_to_what_the_budget_covers(
    gateway: House, upstream: OpenAIEmulator
) -> None:
    key = await gateway.new_key(budget_pusd=1_000_000_000)
    long = [{"role": "user", "content": "x-script: long=5000"}]
    async with client(gateway, key) as sdk:
        answer = await sdk.chat.completions.with_raw_response.create(model="echo", messages=long)  # type: ignore[arg-type]
    assert answer.parse().choices[0].finish_reason == "length"
    sent = upstream.last.json()
    limit = int(answer.headers["x-farebox-max-output-tokens"])
    assert limit == sent.get("max_completion_tokens", sent.get("max_tokens"))
    assert 0 < await gateway.charged_pusd() <= 1_000_000_000


async def test_the_next_deployment_answers_when_the_first_cannot(gateway: House) -> None:
    async with client(gateway) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(model="spare", messages=QUESTION)  # type: ignore[arg-type]
        assert raw.headers["x-farebox-attempts"] == "2"
        stream = await sdk.chat.completions.create(model="spare", messages=QUESTION, stream=True)  # type: ignore[arg-type]
        assert [c async for c in stream]
    rows = await gateway.rows()
    assert [(row["model"], row["attempts"], row["outcome"]) for row in rows] == [("echo-1", 2, "completed")] * 2


@pytest.mark.parametrize(
    ("fault", "status", "code", "outcome"),
    [
        ("500", 502, "upstream_broken", "upstream_failed"),
        ("429-retry-after-ms", 429, "upstream_rate_limited", "upstream_failed"),
        ("401", 502, "upstream_auth_failed", "upstream_failed"),
        ("400", 400, None, "rejected"),
        ("context", 400, "context_length_exceeded", "rejected"),
        ("200-error-body", None, None, "upstream_failed"),
        ("wrong-content-type", 502, "upstream_broken", "upstream_failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_event_is_an_error_and_costs_nothing(
    gateway: House, fault: str, status: int | None, code: str | None, outcome: str, stream: bool
) -> None:
    async with client(gateway) as sdk:
        with pytest.raises(openai.APIStatusError) as failure:
            await sdk.chat.completions.create(model=f"fault-{fault}", messages=QUESTION, stream=stream)  # type: ignore[call-overload]
    if status is not None:
        assert failure.value.status_code == status
    if code is not None:
        assert failure.value.code == code
    (row,) = await gateway.rows()
    assert row["outcome"] == outcome
    assert int(row["charge_pusd"]) == 0
    assert await gateway.charged_pusd() == 0


@pytest.mark.parametrize("fault", ["cut-mid-frame", "stream-error"])
async def test_a_stream_that_dies_midway_ends_in_an_error_and_bills_what_was_delivered(
    gateway: House, fault: str
) -> None:
    async with client(gateway) as sdk:
        stream = await sdk.chat.completions.create(model=f"fault-{fault}", messages=QUESTION, stream=True)  # type: ignore[arg-type]
        texts: list[str] = []

        async def read() -> None:
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - what came before the end counts

        with pytest.raises(openai.APIError):
            await read()
    assert "".join(texts)
    (row,) = await gateway.rows()
    assert row["outcome"] == "upstream_failed"
    assert row["estimated"]
    assert 0 < int(row["charge_pusd"]) == await gateway.charged_pusd()


async def test_an_answer_without_usage_is_estimated_and_says_so(gateway: House) -> None:
    async with client(gateway) as sdk:
        stream = await sdk.chat.completions.create(model="fault-no-usage", messages=QUESTION, stream=True)  # type: ignore[arg-type]
        assert [chunk async for chunk in stream]
    (row,) = await gateway.rows()
    assert row["estimated"]
    assert row["outcome"] == "completed"
    assert int(row["charge_pusd"]) > 0


async def test_a_client_that_leaves_stops_the_upstream_and_pays_for_what_it_got(
    gateway: House, upstream: OpenAIEmulator
) -> None:
    slow = [{"role": "user", "content": "x-script: long=2000 pace_ms=5"}]
    async with client(gateway) as sdk:
        stream = await sdk.chat.completions.create(model="echo", messages=slow, stream=True)  # type: ignore[arg-type]
        async for _ in stream:
            break
        await stream.close()

    await until(lambda: upstream.stats.cut_by_client == 1)
    (row,) = await gateway.rows(at_least=1)
    assert row["outcome"] == "client_gone"
    assert row["estimated"]
    assert upstream.stats.output_tokens < 2000
    assert int(str(row["charge_pusd"])) == await gateway.charged_pusd()


async def test_the_same_key_goes_in_every_clients_header(gateway: House) -> None:
    body = {"model": "echo", "messages": QUESTION}
    async with httpx.AsyncClient() as http:
        for headers in (
            {"authorization": f"Bearer {gateway.key}"},
            {"x-api-key": gateway.key},
            {"api-key": gateway.key},
            {"x-goog-api-key": gateway.key},
        ):
            for path in ("/v1/chat/completions", "/openai/v1/chat/completions", "/chat/completions"):
                assert (await http.post(gateway.url + path, json=body, headers=headers)).status_code == 200


async def test_models_are_listed_in_each_clients_format(gateway: House) -> None:
    async with client(gateway) as sdk:
        assert "echo" in [m.id async for m in sdk.models.list()]
        assert (await sdk.models.retrieve("echo")).id == "echo"
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("nope")
    limited = await gateway.new_key(models=("spare",))
    async with client(gateway, limited) as sdk:
        assert [m.id async for m in sdk.models.list()] == ["spare"]
    async with httpx.AsyncClient(headers={"x-api-key": gateway.key}) as http:
        listed = (await http.get(gateway.v1 + "/models", headers={"anthropic-version": "2023-06-01"})).json()
        assert listed["has_more"] is False
        assert {"type", "id", "display_name", "created_at"} <= set(listed["data"][0])
        gemini = (await http.get(gateway.url + "/v1beta/models")).json()
        assert "models/echo" in [m["name"] for m in gemini["models"]]


async def test_bad_input_is_refused_in_the_clients_words_and_owes_nothing(gateway: House) -> None:
    good = {"model": "echo", "messages": QUESTION}
    revoked = await gateway.new_key()
    public_id = revoked.removeprefix("fbx-").split("_")[0]
    limited = await gateway.new_key(models=("other-*",))
    await gateway.keys.revoke_key(public_id, actor="test", now_ns=1)
    cases: list[tuple[bytes, str | None, int, str]] = [
        (b"{bad", gateway.key, 400, "invalid_request"),
        (b"[]", gateway.key, 400, "invalid_request"),
        (b"\xff\xfe", gateway.key, 400, "invalid_request"),
        (json.dumps(good | {"messages": "hi"}).encode(), gateway.key, 400, "invalid_request"),
        (json.dumps(good | {"temperature": "hot"}).encode(), gateway.key, 400, "invalid_request"),
        (json.dumps(good | {"model": "nope"}).encode(), gateway.key, 404, "model_not_found"),
        (json.dumps(good).encode(), None, 401, "missing_api_key"),
        (json.dumps(good).encode(), "fbx-wrong", 401, "invalid_api_key"),
        (json.dumps(good).encode(), limited, 403, "model_not_allowed"),
        (b" " * (gateway.settings.server.max_body_bytes + 1), gateway.key, 413, "body_too_large"),
    ]
    async with httpx.AsyncClient() as http:
        for body, key, status, code in cases:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            answer = await http.post(gateway.v1 + "/chat/completions", content=body, headers=headers)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code), body[:80]
            assert error["message"]
            assert answer.headers["x-request-id"]
        revoked_answer = await http.post(
            gateway.v1 + "/chat/completions", json=good, headers={"authorization": f"Bearer {revoked}"}
        )
        assert revoked_answer.status_code == 401
    assert await gateway.rows() == []
    assert await gateway.charged_pusd() == 0


async def test_limits_of_rate_refuse_with_the_time_to_wait(gateway: House) -> None:
    key = await gateway.new_key(rpm=3)
    async with client(gateway, key) as sdk:
        for _ in range(3):
            raw = await sdk.chat.completions.with_raw_response.create(model="echo", messages=QUESTION)  # type: ignore[arg-type]
            assert raw.headers["x-ratelimit-limit-requests"] == "3"
        with pytest.raises(openai.RateLimitError) as refusal:
            await sdk.chat.completions.create(model="echo", messages=QUESTION)  # type: ignore[arg-type]
    assert refusal.value.code == "rate_limit_exceeded"
    assert int(refusal.value.response.headers["retry-after-ms"]) > 0
    assert len(await gateway.rows()) == 3


async def test_a_service_tier_without_a_price_is_refused_and_never_sold_at_the_standard_one(gateway: House) -> None:
    async with client(gateway) as sdk:
        with pytest.raises(openai.PermissionDeniedError) as refusal:
            await sdk.chat.completions.create(model="echo", messages=QUESTION, service_tier="priority")  # type: ignore[call-overload]
        assert refusal.value.code == "model_not_priced"
        await sdk.chat.completions.create(model="echo", messages=QUESTION, service_tier="auto")  # type: ignore[call-overload]
    assert len(await gateway.rows()) == 1
