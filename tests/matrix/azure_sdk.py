"""azure-ai-inference, retired by its owner and still in use: `/models/*` of a Foundry resource."""

from __future__ import annotations

import asyncio
from typing import Any

from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import (
    AssistantMessage,
    ChatCompletionsToolDefinition,
    FunctionDefinition,
    ImageContentItem,
    ImageUrl,
    JsonSchemaFormat,
    SystemMessage,
    TextContentItem,
    ToolMessage,
    UserMessage,
)
from azure.core.credentials import AzureKeyCredential

from tests.matrix.asks import ANSWER_SCHEMA, TOOL, TOOL_SCHEMA, Ask, Call, Client, Door, NotOffered, Seen, arguments_of
from tests.matrix.openai_sdks import DATA_URL


class AzureInference(Client):
    name = "azure-ai-inference"
    package = "azure-ai-inference"
    note = "The SDK raises nothing for an error in the stream: its users see an answer without a finish reason."

    def __init__(self, gateway: Door) -> None:
        super().__init__(gateway)
        self.sdk = ChatCompletionsClient(
            f"{gateway.url}/models", AzureKeyCredential(gateway.key), retry_total=0, logging_enable=False
        )

    async def aclose(self) -> None:
        self.sdk.close()

    async def ask(self, alias: str, ask: Ask) -> Seen:
        return await asyncio.to_thread(self._asked, alias, ask)

    def _asked(self, alias: str, ask: Ask) -> Seen:
        body = self._body(alias, ask)
        if ask.stream:
            return _streamed(self.sdk.complete(**body, stream=True, model_extras={"stream_options": _USAGE}))
        answer = self.sdk.complete(**body)
        message = answer.choices[0].message
        seen = Seen(
            message.content or "",
            [choice.message.content for choice in answer.choices],
            str(message.get("reasoning_content") or ""),
            [Call(c.id, c.function.name, arguments_of(c.function.arguments)) for c in message.tool_calls or ()],
            AssistantMessage(content=message.content, tool_calls=message.tool_calls),
        )
        return _with_usage(seen, answer.usage)

    def _body(self, alias: str, ask: Ask) -> dict[str, Any]:
        if ask.n is not None or ask.logprobs or ask.cache:
            raise NotOffered
        content: Any = ask.said
        if ask.pdf:
            raise NotOffered
        if ask.image:
            content = [TextContentItem(text=ask.said), ImageContentItem(image_url=ImageUrl(url=DATA_URL))]
        messages: list[Any] = [UserMessage(content=content)]
        if ask.system is not None:
            messages.insert(0, SystemMessage(content=ask.system))
        if ask.after is not None:
            messages.append(ask.after.turn)
            messages += [
                ToolMessage(content=result, tool_call_id=call.id)
                for call, result in zip(ask.after.calls, ask.results, strict=True)
            ]
        body: dict[str, Any] = {"model": alias, "messages": messages}
        if not ask.reasoning:
            body["max_tokens"] = ask.max_tokens
        if ask.tools:
            function = FunctionDefinition(name=TOOL, description="tells the weather", parameters=TOOL_SCHEMA)
            body["tools"] = [ChatCompletionsToolDefinition(function=function)]
        if ask.forced:
            body["tool_choice"] = {"type": "function", "function": {"name": TOOL}}
        if ask.schema:
            body["response_format"] = JsonSchemaFormat(name="person", schema=ANSWER_SCHEMA, strict=True)
        if ask.reasoning:
            body["model_extras"] = {"reasoning_effort": "low"}
        if ask.stop is not None:
            body["stop"] = [ask.stop]
        if ask.seed is not None:
            body["seed"] = ask.seed
        return body


_USAGE = {"include_usage": True}


def _streamed(chunks: Any) -> Seen:
    seen, calls, finished = Seen(), {}, False  # type: ignore[var-annotated]
    for chunk in chunks:
        _with_usage(seen, chunk.usage)
        for choice in chunk.choices or ():
            finished |= choice.finish_reason is not None
            seen.text += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if (begun := calls.setdefault(call["index"], call)) is not call:
                    begun.function.arguments += call.function.arguments
    if not finished:
        raise NotOffered
    seen.texts = [seen.text]
    seen.calls = [Call(c.id, c.function.name, arguments_of(c.function.arguments)) for c in calls.values()]
    seen.turn = AssistantMessage(content=seen.text or None, tool_calls=list(calls.values()) or None)
    return seen


def _with_usage(seen: Seen, usage: Any) -> Seen:
    if usage is not None:
        seen.input_tokens, seen.output_tokens = usage.prompt_tokens, usage.completion_tokens
        seen.cache_read_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        seen.reasoning_tokens = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return seen
