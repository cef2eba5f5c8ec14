"""anthropic-python in its three houses, and boto3's invoke_model, which carries the same body."""

from __future__ import annotations

import base64
from typing import Any

import anthropic

from tests.matrix.asks import (
    ANSWER_SCHEMA,
    PATIENCE_S,
    PDF,
    PDF_URL,
    PNG,
    TOOL,
    TOOL_SCHEMA,
    Ask,
    Call,
    Client,
    Door,
    NotOffered,
    Seen,
)


def messages_body(ask: Ask) -> dict[str, Any]:
    """The body but for the model. Raises: NotOffered."""
    if ask.seed is not None or ask.n is not None or ask.logprobs:
        raise NotOffered
    content: list[Any] = [{"type": "text", "text": ask.said}]
    if ask.image:
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
        content.append({"type": "image", "source": source})
    if ask.pdf:
        source = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(PDF).decode()}
        if ask.pdf == "address":
            source = {"type": "url", "url": PDF_URL}
        content.append({"type": "document", "source": source})
    messages: list[Any] = [{"role": "user", "content": content}]
    if ask.after is not None:
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": result}
            for call, result in zip(ask.after.calls, ask.results, strict=True)
        ]
        messages += [{"role": "assistant", "content": ask.after.turn}, {"role": "user", "content": results}]
    body: dict[str, Any] = {"messages": messages, "max_tokens": ask.max_tokens}
    if ask.system is not None:
        mark = {"cache_control": {"type": "ephemeral"}} if ask.cache else {}
        body["system"] = [{"type": "text", "text": ask.system, **mark}]
    if ask.tools:
        body["tools"] = [{"name": TOOL, "description": "tells the weather", "input_schema": TOOL_SCHEMA}]
    if ask.forced:
        body["tool_choice"] = {"type": "tool", "name": TOOL}
    if ask.schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": ANSWER_SCHEMA}}
    if ask.reasoning:
        body |= {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048}
    if ask.stop is not None:
        body["stop_sequences"] = [ask.stop]
    return body


def seen_in(message: dict[str, Any]) -> Seen:
    """message: a whole Messages answer as plain values."""
    content, usage = message["content"], message["usage"]
    text = "".join(block["text"] for block in content if block["type"] == "text")
    details = usage.get("output_tokens_details") or {}
    return Seen(
        text,
        [text],
        "".join(block["thinking"] for block in content if block["type"] == "thinking"),
        [Call(block["id"], block["name"], block["input"]) for block in content if block["type"] == "tool_use"],
        content,
        usage["input_tokens"],
        usage["output_tokens"],
        details.get("thinking_tokens") or 0,
        usage.get("cache_read_input_tokens") or 0,
    )


class Messages(Client):
    name = "anthropic"
    package = "anthropic"

    def __init__(self, gateway: Door) -> None:
        super().__init__(gateway)
        self.sdk = self.connected(gateway)

    def connected(self, gateway: Door) -> Any:
        return anthropic.AsyncAnthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0, timeout=PATIENCE_S)

    async def aclose(self) -> None:
        await self.sdk.close()

    async def ask(self, alias: str, ask: Ask) -> Seen:
        body = messages_body(ask) | {"model": alias}
        if ask.stream:
            async with self.sdk.messages.stream(**body) as events:
                message = await events.get_final_message()
        else:
            message = await self.sdk.messages.create(**body)
        return seen_in(message.model_dump(exclude_none=True))

    async def count(self, alias: str, ask: Ask) -> int:
        body = {name: value for name, value in messages_body(ask).items() if name != "max_tokens"}
        return int((await self.sdk.messages.count_tokens(model=alias, **body)).input_tokens)


class MessagesOnBedrock(Messages):
    """AnthropicBedrock: InvokeModel, signed."""

    name = "anthropic (Bedrock)"

    def connected(self, gateway: Door) -> Any:
        return anthropic.AsyncAnthropicBedrock(
            base_url=gateway.url,
            aws_access_key=gateway.key,
            aws_secret_key=gateway.key,
            aws_region="us-east-1",
            max_retries=0,
            timeout=PATIENCE_S,
        )

    async def count(self, alias: str, ask: Ask) -> int:
        raise NotOffered


class MessagesOnVertex(Messages):
    """AnthropicVertex: rawPredict, with a bearer token."""

    name = "anthropic (Vertex)"

    def connected(self, gateway: Door) -> Any:
        return anthropic.AsyncAnthropicVertex(
            base_url=gateway.v1,
            access_token=gateway.key,
            project_id="demo",
            region="us-central1",
            max_retries=0,
            timeout=PATIENCE_S,
        )
