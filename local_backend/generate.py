"""From sequences in the core to text: what every endpoint that generates has in common.

Text here is whole characters, without stop strings; how a dialect wraps it is not known here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable

import msgspec
from msgspec import Struct

from local_backend.client import CoreClient
from local_backend.errors import ContextLengthExceeded, NotReady
from local_backend.images import Picture
from local_backend.messages import Images, Sampling, Terms, TokenLogprobs, TokenOut
from local_backend.metrics import Metrics
from local_backend.parsers import Event, Parser
from local_backend.tokenizer import StopStrings, TextStream, Tokenizer

GOLDEN = 0x9E3779B97F4A7C15  # spreads the seeds of one request's answers


class Generation(Struct, frozen=True):
    """What to generate: prompts, and how each is continued n times."""

    prompts: list[list[int]]
    sampling: Sampling
    n: int = 1
    stops: list[str] = []
    cache_salt: str = ""
    terms: Terms = Terms()
    reader: Callable[[], Parser] | None = None  # makes what tells thoughts and calls in each answer's text
    primer: str = ""  # the end of the prompt, where it already belongs to the answer
    shown: frozenset[int] = frozenset()  # special tokens whose text the reader must see
    prompt_param: str = "messages"  # named in errors about the prompt
    pictures: list[Picture] = []  # in the one prompt, as they were sent
    images: Images | None = None  # the same as the core takes them


class TokenInfo(Struct, frozen=True):
    """One token of the answer with its logprobs and where its text begins."""

    token: int
    logprobs: TokenLogprobs
    text_offset: int


class Delta(Struct, frozen=True):
    """A piece of one answer. `index` counts over all prompts: prompt * n + answer.

    `events` is what the reader made of the text, None where there is no reader."""

    index: int
    text: str
    tokens: list[TokenInfo]
    finish: str | None
    events: list[Event] | None = None


class Totals(Struct):
    """Token counts of a request so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0  # of the prompt's


class Answer:
    """Turns one sequence's tokens into deltas."""

    def __init__(self, index: int, tokenizer: Tokenizer, generation: Generation) -> None:
        self.index = index
        self._ends = generation.sampling.stop_token_ids
        self._special = generation.shown
        self._reader = generation.reader() if generation.reader is not None else None
        # What the primer opens is read with the answer; nothing in it can be said before the answer goes on.
        self._read = self._reader.feed(generation.primer) if self._reader is not None else []
        self.started = False
        self._tokenizer = tokenizer
        self._text = TextStream()
        self._stops = StopStrings(generation.stops)
        self._decoded = 0  # characters, those held back by stop strings included
        self._shown = 0
        self._pending: list[TokenInfo] = []

    def feed(self, tokens: list[TokenOut]) -> tuple[Delta | None, int]:
        """Returns: what may be shown now, if anything; and how many of the tokens belong to the answer."""
        self.started = True
        pieces: list[str] = []
        for count, out in enumerate(tokens, 1):
            if out.logprobs is not None:
                self._pending.append(TokenInfo(out.token, out.logprobs, self._decoded))
            # A stop token ends the answer and is no part of its text.
            ended = out.finish == "stop" and out.token in self._ends
            text = "" if ended else self._text.feed(self._bytes(out.token))
            if out.finish is not None:
                text += self._text.flush()
            self._decoded += len(text)
            shown, stopped = self._stops.feed(text)
            pieces.append(shown)
            if stopped:
                return self._delta("".join(pieces), "stop"), count
            if out.finish is not None:
                pieces.append(self._stops.flush())
                return self._delta("".join(pieces), out.finish), count
        text = "".join(pieces)
        return (self._delta(text, None) if text else None), len(tokens)

    def _bytes(self, token: int) -> bytes:
        """Special tokens vanish from the text, but for those that a reader looks for."""
        raw = token in self._special
        return self._tokenizer.raw_bytes(token) if raw else self._tokenizer.text_bytes(token)

    def _delta(self, text: str, finish: str | None) -> Delta:
        """Logprobs go out with the text that their token begins in, so none of a stop string's gets out."""
        self._shown += len(text)
        ripe = [t for t in self._pending if finish == "length" or t.text_offset < self._shown]
        self._pending = self._pending[len(ripe) :]
        if self._reader is None:
            return Delta(self.index, text, ripe, finish)
        events, self._read = self._read + self._reader.feed(text), []
        if finish is not None:
            events += self._reader.finish()
        if finish == "stop" and self._reader.called:
            finish = "tool_calls"
        return Delta(self.index, text, ripe, finish, events)


def check_length(prompt: list[int], max_model_len: int, param: str) -> int:
    """Output tokens that the context leaves. Raises ContextLengthExceeded if there is no room for one."""
    if (room := max_model_len - len(prompt)) < 1:
        raise ContextLengthExceeded(len(prompt), max_model_len, param)
    return room


async def generate(
    generation: Generation, core: CoreClient, tokenizer: Tokenizer, metrics: Metrics, totals: Totals
) -> AsyncGenerator[Delta, None]:
    """Deltas of all answers as they come, each answer ending in one with a finish. Keeps `totals` up to date.

    Closing the iterator stops what still runs. Raises EngineError; before the first delta nothing was generated."""
    if (ready := core.ready) is None:
        raise NotReady("the engine is loading, restarting or shutting down")
    sequences: list[tuple[list[int], Sampling]] = []
    for prompt in generation.prompts:
        room = check_length(prompt, ready.max_model_len, generation.prompt_param)
        totals.prompt_tokens += len(prompt)
        sequences += [(prompt, _variant(generation.sampling, n, room)) for n in range(generation.n)]
    if (images := generation.images) is not None:
        totals.image_tokens = len(images.tiles) * images.tile_tokens
    flight = core.submit(sequences, generation.cache_salt, generation.terms, images)
    clock = metrics.request_started(totals.prompt_tokens, time.monotonic())
    answers = {id_: Answer(i, tokenizer, generation) for i, id_ in enumerate(flight.ids)}
    open_ids = set(flight.ids)
    try:
        while open_ids:
            for id_, tokens in (await flight.next()).items():
                answer = answers[id_]
                if not answer.started and answer.index % generation.n == 0:
                    totals.cached_tokens += tokens[0].cached_tokens
                delta, count = answer.feed(tokens)
                totals.completion_tokens += count
                clock.tokens(id_, count, time.monotonic())
                if delta is None:
                    continue
                if delta.finish is not None:
                    open_ids.discard(id_)
                    core.release([id_])  # a stop string ends the text before the core knows
                    clock.finished(delta.finish, time.monotonic())
                yield delta
    finally:
        if open_ids:
            clock.finished("abort", time.monotonic())
        core.release(flight.ids)


def _variant(sampling: Sampling, answer: int, room: int) -> Sampling:
    """Sampling of one of n answers: its own seed, and no more tokens than the context leaves."""
    seed = (sampling.seed + answer * GOLDEN) & (2**64 - 1)
    return msgspec.structs.replace(sampling, seed=seed, max_tokens=min(sampling.max_tokens, room))
