"""boto3: Converse and InvokeModel, whole and streamed. It signs; our key is both halves of its credential."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import boto3
from botocore.config import Config

from tests.matrix import anthropic_sdks
from tests.matrix.asks import (
    ANSWER_SCHEMA,
    PDF,
    PNG,
    TOOL,
    TOOL_SCHEMA,
    Ask,
    Call,
    Client,
    Door,
    NotOffered,
    Seen,
    arguments_of,
)

_CONFIG = Config(retries={"total_max_attempts": 1}, max_pool_connections=20)


class Boto3(Client):
    package = "boto3"

    def __init__(self, gateway: Door) -> None:
        super().__init__(gateway)
        self.sdk: Any = boto3.client(
            "bedrock-runtime",
            endpoint_url=gateway.url,
            region_name="us-east-1",
            aws_access_key_id=gateway.key,
            aws_secret_access_key=gateway.key,
            config=_CONFIG,
        )

    async def aclose(self) -> None:
        self.sdk.close()

    async def ask(self, alias: str, ask: Ask) -> Seen:
        return await asyncio.to_thread(self.asked, alias, ask)

    async def count(self, alias: str, ask: Ask) -> int:
        return await asyncio.to_thread(self.counted, alias, ask)

    def asked(self, alias: str, ask: Ask) -> Seen:
        raise NotImplementedError

    def counted(self, alias: str, ask: Ask) -> int:
        raise NotOffered


class Converse(Boto3):
    name = "boto3 converse"

    def asked(self, alias: str, ask: Ask) -> Seen:
        body = converse_body(ask)
        if not ask.stream:
            answer = self.sdk.converse(modelId=alias, **body)
            return _seen_in(answer["output"]["message"]["content"], answer["usage"])
        blocks: dict[int, dict[str, Any]] = {}
        usage: dict[str, Any] = {}
        for event in self.sdk.converse_stream(modelId=alias, **body)["stream"]:
            if start := event.get("contentBlockStart"):
                blocks[start["contentBlockIndex"]] = {"toolUse": {**start["start"]["toolUse"], "input": ""}}
            elif delta := event.get("contentBlockDelta"):
                _extend(blocks.setdefault(delta["contentBlockIndex"], {}), delta["delta"])
            elif told := event.get("metadata"):
                usage = told["usage"]
        for block in blocks.values():
            if use := block.get("toolUse"):
                use["input"] = arguments_of(use["input"])
        return _seen_in(list(blocks.values()), usage)

    def counted(self, alias: str, ask: Ask) -> int:
        body = {name: value for name, value in converse_body(ask).items() if name in ("messages", "system")}
        return int(self.sdk.count_tokens(modelId=alias, input={"converse": body})["inputTokens"])


def converse_body(ask: Ask) -> dict[str, Any]:
    """Raises: NotOffered."""
    if ask.seed is not None or ask.n is not None or ask.logprobs:
        raise NotOffered
    content: list[Any] = [{"text": ask.said}]
    if ask.image:
        content.append({"image": {"format": "png", "source": {"bytes": PNG}}})
    if ask.pdf == "address":
        raise NotOffered
    if ask.pdf:
        content.append({"document": {"format": "pdf", "name": "report", "source": {"bytes": PDF}}})
    messages: list[Any] = [{"role": "user", "content": content}]
    if ask.after is not None:
        results = [
            {"toolResult": {"toolUseId": call.id, "content": [{"text": result}]}}
            for call, result in zip(ask.after.calls, ask.results, strict=True)
        ]
        messages += [{"role": "assistant", "content": ask.after.turn}, {"role": "user", "content": results}]
    limits: dict[str, Any] = {"maxTokens": 2048 if ask.reasoning else ask.max_tokens}
    if ask.stop is not None:
        limits["stopSequences"] = [ask.stop]
    body: dict[str, Any] = {"messages": messages, "inferenceConfig": limits}
    if ask.system is not None:
        body["system"] = [{"text": ask.system}] + ([{"cachePoint": {"type": "default"}}] if ask.cache else [])
    if ask.tools:
        spec = {"name": TOOL, "description": "tells the weather", "inputSchema": {"json": TOOL_SCHEMA}}
        body["toolConfig"] = {"tools": [{"toolSpec": spec}]}
    if ask.forced:
        body["toolConfig"]["toolChoice"] = {"tool": {"name": TOOL}}
    if ask.schema:
        shape = {"jsonSchema": {"schema": json.dumps(ANSWER_SCHEMA), "name": "person"}}
        body["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": shape}}
    if ask.reasoning:
        body["additionalModelRequestFields"] = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    return body


def _extend(block: dict[str, Any], delta: dict[str, Any]) -> None:
    if "text" in delta:
        block["text"] = block.get("text", "") + delta["text"]
    elif "toolUse" in delta:
        block["toolUse"]["input"] += delta["toolUse"]["input"]
    elif thought := delta.get("reasoningContent"):
        held = block.setdefault("reasoningContent", {}).setdefault("reasoningText", {"text": ""})
        held["text"] += thought.get("text", "")
        if "signature" in thought:
            held["signature"] = thought["signature"]


def _seen_in(content: list[dict[str, Any]], usage: dict[str, Any]) -> Seen:
    text = "".join(block.get("text", "") for block in content)
    uses = [block["toolUse"] for block in content if "toolUse" in block]
    thoughts = [block["reasoningContent"]["reasoningText"]["text"] for block in content if "reasoningContent" in block]
    return Seen(
        text,
        [text],
        "".join(thoughts),
        [Call(use["toolUseId"], use["name"], use["input"]) for use in uses],
        content,
        usage["inputTokens"],
        usage["outputTokens"],
        cache_read_tokens=usage.get("cacheReadInputTokens") or 0,
    )


class InvokeModel(Boto3):
    """A Claude's own body in AWS's envelope; the stream's events are put together here, as its users do."""

    name = "boto3 invoke_model"

    def asked(self, alias: str, ask: Ask) -> Seen:
        body = json.dumps({"anthropic_version": "bedrock-2023-05-31", **anthropic_sdks.messages_body(ask)})
        if not ask.stream:
            answer = self.sdk.invoke_model(modelId=alias, body=body)
            return anthropic_sdks.seen_in(json.loads(answer["body"].read()))
        message: dict[str, Any] = {}
        for event in self.sdk.invoke_model_with_response_stream(modelId=alias, body=body)["body"]:
            value = json.loads(event["chunk"]["bytes"])
            match value["type"]:
                case "message_start":
                    message = value["message"]
                case "content_block_start":
                    message["content"].append({**value["content_block"], "partial": ""})
                case "content_block_delta":
                    _extend_block(message["content"][value["index"]], value["delta"])
                case "content_block_stop":
                    partial = message["content"][value["index"]].pop("partial")
                    if partial:
                        message["content"][value["index"]]["input"] = arguments_of(partial)
                case "message_delta":
                    message["usage"] |= value["usage"]
        return anthropic_sdks.seen_in(message)


def _extend_block(block: dict[str, Any], delta: dict[str, Any]) -> None:
    match delta["type"]:
        case "text_delta":
            block["text"] += delta["text"]
        case "thinking_delta":
            block["thinking"] += delta["thinking"]
        case "signature_delta":
            block["signature"] = delta["signature"]
        case "input_json_delta":
            block["partial"] += delta["partial_json"]
