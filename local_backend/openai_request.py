"""OpenAI's dialect, inwards: request bodies -> what to generate.

Source: OpenAI API reference, chat completions and completions, and vLLM's additions to them (top_k, min_p,
repetition_penalty, stop_token_ids, ignore_eos, cache_salt); read 2026-11.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from local_backend.errors import InvalidRequest, Unsupported
from local_backend.generate import Generation
from local_backend.messages import Sampling
from local_backend.model_config import ModelConfig
from local_backend.template import ChatTemplate
from local_backend.tokenizer import Tokenizer

MAX_ANSWERS = 32
MAX_STOPS = 16
MAX_PROMPTS = 64
NO_LIMIT = 2**31 - 1  # the context length is the limit then

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Count = Annotated[int, Meta(ge=1)]


class StreamOptions(Struct):
    """What a stream carries besides its text."""

    include_usage: bool | None = None


class Common(Struct, kw_only=True):
    """Fields that both endpoints share. None is what clients send for 'not set'."""

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0)] | None = None
    seed: int | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        """True if the stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Message(Struct):
    """One turn of the conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None


class ChatBody(Common, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(Common, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class TokenizeBody(Struct):
    """POST /tokenize, in vLLM's form: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True


Body = TypeVar("Body", ChatBody, CompletionBody, TokenizeBody)


def decode_body(raw: bytes, kind: type[Body]) -> tuple[Body, list[str]]:
    """A request body, and the names of its fields that mean nothing here. Raises InvalidRequest naming the field."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    try:
        body = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = re.search(r"at `\$\.?([^`]*)`", message) or re.search(r"required field `([^`]*)`", message)
        raise InvalidRequest(message, param=found[1] if found else None) from None
    return body, sorted(value.keys() - set(kind.__struct_fields__))


def chat_generation(body: ChatBody, template: ChatTemplate, tokenizer: Tokenizer, config: ModelConfig) -> Generation:
    """Raises InvalidRequest, or Unsupported naming what is asked for and not done here."""
    if body.tools and body.tool_choice != "none":
        raise Unsupported("this engine does not call tools", param="tools")
    if body.functions:
        raise Unsupported("this engine does not call functions", param="functions")
    if body.response_format and body.response_format.get("type") != "text":
        raise Unsupported(
            f"response format {body.response_format.get('type')!r} is not served here", param="response_format"
        )
    if body.audio or (body.modalities and body.modalities != ["text"]):
        raise Unsupported("this engine answers with text alone", param="modalities")
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    prompt = tokenizer.encode(chat_prompt(body.messages, template), special=False)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_completion_tokens or body.max_tokens or NO_LIMIT
    return _generation(body, [prompt], max_tokens, logprobs, "messages", tokenizer, config)


def completion_generation(body: CompletionBody, tokenizer: Tokenizer, config: ModelConfig) -> Generation:
    """Raises InvalidRequest, or Unsupported naming what is asked for and not done here."""
    if body.suffix:
        raise Unsupported("filling in before a suffix is not served here", param="suffix")
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise Unsupported("best_of above n is not served here", param="best_of")
    if body.echo and body.logprobs is not None:
        raise Unsupported("logprobs of the prompt are not served here", param="echo")
    prompts = [_prompt(p, tokenizer, config) for p in _prompts(body.prompt)]
    return _generation(body, prompts, body.max_tokens or 16, body.logprobs, "prompt", tokenizer, config)


def chat_prompt(messages: list[Message], template: ChatTemplate) -> str:
    """The prompt text of a conversation. Raises InvalidRequest or Unsupported."""
    return template.render([_template_message(m, at) for at, m in enumerate(messages)])


def _template_message(message: Message, at: int) -> dict[str, Any]:
    """What templates expect: plain text content, and the roles that open models know."""
    content = message.content
    if isinstance(content, list):
        for n, part in enumerate(content):
            if part.get("type") not in ("text", "refusal"):
                raise Unsupported(
                    f"content of type {part.get('type')!r} is not served here: this model reads text alone",
                    param=f"messages[{at}].content[{n}]",
                )
            if not isinstance(part.get(part["type"]), str):
                raise InvalidRequest("a text part needs its text", param=f"messages[{at}].content[{n}].text")
        content = "".join(part[part["type"]] for part in content)
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
    }
    if message.role not in ("system", "developer", "user", "assistant", "tool"):
        raise InvalidRequest(f"unknown role {message.role!r}", param=f"messages[{at}].role")
    for field in ("name", "tool_calls", "tool_call_id"):
        if (value := getattr(message, field)) is not None:
            turn[field] = value
    return turn


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The four forms of a completion prompt as a list of texts or token lists."""
    if isinstance(prompt, str):
        return [prompt]
    if ids := [p for p in prompt if isinstance(p, int)]:
        if len(ids) != len(prompt):
            raise InvalidRequest("a prompt of token ids holds nothing else", param="prompt")
        return [ids]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"{len(prompt)} prompts in one request; at most {MAX_PROMPTS}", param="prompt")
    return [p for p in prompt if not isinstance(p, int)]


def _prompt(prompt: str | list[int], tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, special=True)
    if wrong := next((i for i in prompt if not 0 <= i < config.vocab_size), None):
        raise InvalidRequest(f"token id {wrong} is not in the vocabulary of {config.vocab_size}", param="prompt")
    return prompt


def _generation(
    body: Common,
    prompts: list[list[int]],
    max_tokens: int,
    logprobs: int | None,
    prompt_param: str,
    tokenizer: Tokenizer,
    config: ModelConfig,
) -> Generation:
    if not prompts or not all(prompts):
        raise InvalidRequest("the prompt is empty", param=prompt_param, code="empty_prompt")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"at most {MAX_STOPS} stop strings", param="stop")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    stop_ids = () if body.ignore_eos else config.eos_token_ids
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=config.temperature if body.temperature is None else body.temperature,
        top_p=config.top_p if body.top_p is None else body.top_p,
        top_k=max(0, config.top_k if body.top_k is None else body.top_k),
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=config.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty,
        seed=secrets.randbits(64) if body.seed is None else body.seed & (2**64 - 1),
        logit_bias=_bias(body.logit_bias, config.vocab_size),
        logprobs=logprobs,
        stop_token_ids=(*stop_ids, *(body.stop_token_ids or ())),
    )
    return Generation(
        prompts=prompts,
        sampling=sampling,
        n=body.n or 1,
        stops=stops,
        cache_salt=body.cache_salt or "",
        prompt_param=prompt_param,
    )


def _bias(bias: dict[str, float] | None, vocab_size: int) -> dict[int, float]:
    """JSON has only strings for keys; the ids in them are checked, since they index a tensor."""
    out: dict[int, float] = {}
    for key, value in (bias or {}).items():
        if not key.isascii() or not key.isdigit() or int(key) >= vocab_size:
            raise InvalidRequest(f"{key!r} is no token id of this model", param="logit_bias")
        out[int(key)] = value
    return out
