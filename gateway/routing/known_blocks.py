"""Which engine of one's own holds how much of a prompt, to the token: for `prefix`, `auto` and `lowest_cost`.

A provider whose options name `kv_events` (and `kv_events_replay`) is listened to, and so is a replica that said
where it tells when it joined. A long prompt is then tokenised by one of an alias' engines, whose template and
vocabulary are the right ones by nature: one short call beside thousands of tokens that need not be read. Whatever is
not known in time falls back to the guess by bytes (`warmth.py`)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from gateway.exchange import Providers
from gateway.offered import ProviderSettings
from gateway.routing.block_news import Subscription
from gateway.routing.blocks import Blocks, Event, Prompt
from gateway.routing.catalog import Deployment, account_of
from gateway.routing.replicas import NOBODY, Fleet
from providers.base import Call
from providers.errors import ProviderError
from providers.openai_like import OpenAILike

log = structlog.get_logger(__name__)

EVENTS: Final = "kv_events"
REPLAY: Final = "kv_events_replay"
# Of a prompt's text. Shorter ones are read sooner than they are asked about.
LONG_BYTES: Final = 2048
TOKENISE_S: Final = 0.1
FOLLOW_S: Final = 1.0
OURS: Final = "local"

ProvidersNow = Callable[[], Mapping[str, ProviderSettings]]


class KnownBlocks:
    """One a gateway process. `follow` keeps its listeners in step with the catalogue."""

    def __init__(
        self,
        providers: Providers,
        now: ProvidersNow,
        chance: Callable[[], float] = random.random,
        fleet: Callable[[], Fleet] = lambda: NOBODY,
    ) -> None:
        """now: the providers in force. chance: draws from [0, 1). fleet: the replicas that have joined them."""
        self._fleet = fleet
        self._chance = chance
        self._providers = providers
        self._now = now
        self._listening: dict[str, tuple[tuple[str, str | None, str], Subscription]] = {}
        self._blocks: dict[str, Blocks] = {}

    async def follow(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._adopt()
                await asyncio.sleep(FOLLOW_S)
        finally:
            for name in list(self._listening):
                await self._leave(name)

    async def held(
        self, call: Call, deployments: Sequence[Deployment], text_bytes: int, tenant: str
    ) -> tuple[dict[str, int], int | None]:
        """Returns: by deployment how many of the prompt's tokens it holds, for those that tell; and how many tokens it
        has, if that is known."""
        if not self._blocks or text_bytes < LONG_BYTES or len(deployments) < 2:
            return {}, None
        telling = [(d, blocks) for d in deployments if (blocks := self._told_by(d)) is not None]
        held: dict[str, int] = {}
        count = None
        for model in dict.fromkeys(d.model for d, _ in telling):
            prompt = await self._tokenised(call, [d for d, _ in telling if d.model == model], tenant)
            if prompt is not None:
                count = len(prompt.tokens)
                held |= {d.id: blocks.held_tokens(prompt) for d, blocks in telling if d.model == model}
        return held, count

    def _told_by(self, deployment: Deployment) -> Blocks | None:
        """Of one that has told of a block, though it may hold none now."""
        own = account_of(deployment.provider, deployment.account)
        blocks = self._blocks.get(own, self._blocks.get(deployment.provider))
        return None if blocks is None or blocks.size is None else blocks

    async def _tokenised(self, call: Call, among: Sequence[Deployment], tenant: str) -> Prompt | None:
        asked = among[int(self._chance() * len(among))]
        provider = self._providers.get(asked.adapter)
        if not isinstance(provider, OpenAILike):
            return None
        try:
            async with asyncio.timeout(TOKENISE_S):
                tokens = await provider.tokenize(call, asked.model)
        except (ProviderError, TimeoutError) as error:
            log.debug("prompt not tokenised, guessed by bytes", deployment=asked.id, reason=type(error).__name__)
            return None
        return Prompt(tokens, tenant)

    async def _adopt(self) -> None:
        wanted = {}
        fleet = self._fleet()
        for name, said in self._now().items():
            events, replay, kind = said.options.get(EVENTS), said.options.get(REPLAY), said.kind or name
            if said.enabled and isinstance(events, str):
                wanted[name] = (events, replay if isinstance(replay, str) else None, kind)
            if said.enabled and said.replicas:
                for each in fleet.get(name, ()):
                    if each.kv_events is not None:
                        wanted[account_of(name, each.name)] = (each.kv_events, each.kv_events_replay, kind)
        for name, (terms, _) in list(self._listening.items()):
            if wanted.get(name) != terms:
                await self._leave(name)
        for name, terms in wanted.items():
            if name not in self._listening:
                self._listen(name, terms)

    def _listen(self, name: str, terms: tuple[str, str | None, str]) -> None:
        events, replay, kind = terms
        blocks = Blocks(salted=kind == OURS)
        loop = asyncio.get_running_loop()

        def heard(batch: Sequence[Event] | None) -> None:
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                if batch is None:
                    loop.call_soon_threadsafe(blocks.clear)
                else:
                    loop.call_soon_threadsafe(blocks.apply, batch)

        try:
            self._listening[name] = (terms, Subscription(events, replay, heard))
        except (ValueError, ImportError) as error:
            log.error("an engine's cache events cannot be followed; prefixes are guessed by bytes", provider=name,
                      reason=str(error), fix="check kv_events and kv_events_replay; pip install pyzmq")  # fmt: skip
            return
        self._blocks[name] = blocks

    async def _leave(self, name: str) -> None:
        _, subscription = self._listening.pop(name)
        self._blocks.pop(name, None)
        await asyncio.to_thread(subscription.close)
