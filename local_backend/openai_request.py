"""OpenAI's dialect, inwards: what a request asks for -> what to generate."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from msgspec import structs

from local_backend.errors import InvalidRequest, Unsupported
from local_backend.generate import Generation
from local_backend.images import Picture, expanded
from local_backend.messages import Sampling, Terms
from local_backend.model_text import ModelText
from local_backend.openai_bodies import ChatBody, Common, CompletionBody, Message
from local_backend.openai_messages import template_messages
from local_backend.parsers import HarmonyParser, MarkedParser, Parser
from local_backend.structured import after_thought, grammar_of
from local_backend.tools import HERMES, Format, Tool, demanded, read_choice, read_tools

MAX_STOPS = 16
MAX_PROMPTS = 64
NO_LIMIT = 2**31 - 1  # the context length is the limit then


def chat_generation(body: ChatBody, text: ModelText) -> Generation:
    """Raises InvalidRequest, or Unsupported naming what is asked for and not done here."""
    if body.functions:
        raise Unsupported("functions are out of date; send them as tools", param="functions")
    if body.audio or (body.modalities and body.modalities != ["text"]):
        raise Unsupported("this engine answers with text alone", param="modalities")
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    tools = read_tools(body.tools)
    choice = read_choice(body.tool_choice, tools)
    prompt, pictures = chat_prompt(body.messages, tools if choice.kind != "none" else [], text, _variables(body))
    opens_thought = text.template.opens_thought(prompt)
    format_ = None if choice.kind == "none" else text.template.calls or HERMES
    primer, grammar = "", None
    if choice.kind in ("required", "named"):
        assert format_ is not None
        if body.response_format is not None and body.response_format.get("type") != "text":
            raise InvalidRequest("a demanded tool call leaves no room for a response format", param="response_format")
        several = body.parallel_tool_calls is True
        primer, grammar = demanded(format_, choice, tools, text.tokenizer, several=several)
        text.checker.check(grammar, "tools")
        if opens_thought:
            assert text.template.think is not None
            primer = f"\n{text.template.think[1]}\n\n{primer}"
    elif found := grammar_of(body.response_format, body.structured_outputs, body.guided):
        grammar, param = found
        if text.template.think is not None:
            grammar = after_thought(grammar, text.template.think, text.tokenizer, opened=opens_thought)
        text.checker.check(grammar, param)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    generation = _generation(
        body,
        [text.tokenizer.encode(prompt + primer, special=False)],
        body.max_completion_tokens or body.max_tokens or NO_LIMIT,
        logprobs,
        "messages",
        text,
        grammar,
    )
    reader = _reader(format_, text.template.think, tools, thinking=opens_thought)
    generation = structs.replace(generation, pictures=pictures)
    if reader is None:
        return generation
    marks = [*(format_.marks if format_ else ()), *(text.template.think or ())]
    shown = frozenset(id_ for mark in marks if (id_ := text.tokenizer.id_of(mark)) is not None)
    return structs.replace(generation, reader=reader, primer=primer, shown=shown)


def _reader(
    format_: Format | None, think: tuple[str, str] | None, tools: list[Tool], *, thinking: bool
) -> Callable[[], Parser] | None:
    """What makes the parser of each answer; None if there is nothing to be found in it but text."""
    if format_ is not None and format_.name == "harmony":
        return HarmonyParser
    if format_ is None and think is None:
        return None
    schemas = {tool.name: tool.schema for tool in tools}
    return lambda: MarkedParser(format_, think=think, thinking=thinking, schemas=schemas)


def chat_prompt(
    messages: list[Message], tools: list[Tool], text: ModelText, variables: dict[str, Any] | None = None
) -> tuple[str, list[Picture]]:
    """The prompt text of a conversation, and its images. Raises InvalidRequest or Unsupported."""
    vision = text.config.vision
    turns, pictures = template_messages(messages, text.config)
    prompt = text.template.render(turns, tools, variables or {})
    return prompt if vision is None else expanded(prompt, pictures, vision), pictures


def _variables(body: ChatBody) -> dict[str, Any]:
    """What the client tells the template itself, such as enable_thinking or reasoning_effort."""
    variables = dict(body.chat_template_kwargs or {})
    if reserved := variables.keys() & {"messages", "tools", "add_generation_prompt"}:
        raise InvalidRequest(f"{min(reserved)!r} is not the client's to set", param="chat_template_kwargs")
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    return variables


def completion_generation(body: CompletionBody, text: ModelText) -> Generation:
    """Raises InvalidRequest, or Unsupported naming what is asked for and not done here."""
    if body.suffix:
        raise Unsupported("filling in before a suffix is not served here", param="suffix")
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise Unsupported("best_of above n is not served here", param="best_of")
    if body.echo and body.logprobs is not None:
        raise Unsupported("logprobs of the prompt are not served here", param="echo")
    prompts = [_prompt(p, text) for p in _prompts(body.prompt)]
    grammar = None
    if found := grammar_of(None, body.structured_outputs, body.guided):
        grammar, param = found
        text.checker.check(grammar, param)
    return _generation(body, prompts, body.max_tokens or 16, body.logprobs, "prompt", text, grammar)


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


def _prompt(prompt: str | list[int], text: ModelText) -> list[int]:
    if isinstance(prompt, str):
        return text.tokenizer.encode(prompt, special=True)
    vocabulary = text.config.vocab_size
    if (wrong := next((i for i in prompt if not 0 <= i < vocabulary), None)) is not None:
        raise InvalidRequest(f"token id {wrong} is not in the vocabulary of {vocabulary}", param="prompt")
    return prompt


def _generation(
    body: Common,
    prompts: list[list[int]],
    max_tokens: int,
    logprobs: int | None,
    prompt_param: str,
    text: ModelText,
    grammar: str | None,
) -> Generation:
    config = text.config
    if not prompts or not all(prompts):
        raise InvalidRequest("the prompt is empty", param=prompt_param, code="empty_prompt")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"at most {MAX_STOPS} stop strings", param="stop")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    if grammar is not None and body.min_tokens:
        raise InvalidRequest("min_tokens would forbid the end that the constraint demands", param="min_tokens")
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
        repeatable=body.seed is not None,
        logit_bias=_bias(body.logit_bias, config.vocab_size),
        logprobs=logprobs,
        min_tokens=min(body.min_tokens or 0, max_tokens),
        stop_token_ids=(*stop_ids, *(body.stop_token_ids or ())),
    )
    return Generation(
        prompts=prompts,
        sampling=sampling,
        n=body.n or 1,
        stops=stops,
        cache_salt=body.cache_salt or "",
        terms=Terms(grammar=grammar, priority=body.priority or 0),
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
