"""The whole way of a request: authenticate, then decode, plan, admit, call, relay, settle. Free of ASGI.

What differs by operation is told in `chat.py`, `embedding.py` and `counting.py`, each on a screen; what all paid ones
share stands in `desk.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from billing.journal import Journal
from gateway.admission import Gate, KeyStore, Principal
from gateway.answers import Answers
from gateway.background import Background
from gateway.batches.api import Batches, Files
from gateway.batches.messages import MessageBatches
from gateway.bodies.recorder import Recorder
from gateway.chat import Chat
from gateway.counting import Counting
from gateway.desk import Desk
from gateway.embedding import Embedding
from gateway.exchange import Inbound, Providers, Reply
from gateway.guardrails.watch import Watch
from gateway.ingress.endpoints import Operation
from gateway.ingress.errors import as_body
from gateway.ingress.hygiene import check_shape
from gateway.interactions import Interactions, StoredInteractions
from gateway.media import Media
from gateway.rerank import Rerank
from gateway.responses import Conversation, Retrieval
from gateway.routing.fallback import Dispatcher
from gateway.routing.known_blocks import KnownBlocks
from gateway.routing.offer import Offer
from gateway.sections import ServerSettings
from gateway.shadowing import Shadows
from gateway.stored import Store
from providers.dialects import openai_media

_MESSAGE_BATCHES: Final[tuple[Operation, ...]] = (
    "message_batch_create",
    "message_batch_list",
    "message_batch_get",
    "message_batch_cancel",
    "message_batch_results",
    "message_batch_delete",
)
_HOLD_MANY: Final = ("file_create", "message_batch_create")


class Way(Protocol):
    def serve(self, inbound: Inbound, who: Principal) -> Awaitable[Reply]:
        """Raises, at the call or when awaited: GatewayError, ProviderError or BillingError, with nothing owed; the
        caller words it."""


class Pipeline:
    """Everything long-lived that a request needs, built once by `app.py`."""

    def __init__(
        self,
        keys: KeyStore,
        gate: Gate,
        journal: Journal,
        providers: Providers,
        offer: Offer,
        clock: Callable[[], int],
        strict: bool,
        responses: Store,
        background: Background,
        dispatcher: Dispatcher,
        limits: ServerSettings,
        files: Files,
        batches: Batches,
        message_batches: MessageBatches,
        answers: Answers,
        watch: Watch,
        shadows: Shadows,
        known: KnownBlocks,
        recorder: Recorder,
    ) -> None:
        self._recorder = recorder
        self._limits = limits
        self._desk = Desk(keys, gate, journal, providers, offer, clock, dispatcher, watch)
        chat = Chat(self._desk, providers, answers, watch, strict, as_body, shadows, known)
        self._ways: Mapping[Operation, Way] = {
            "chat": chat,
            "completions": chat,
            "conversation": Conversation(chat, responses, background, clock),
            "interaction": Interactions(chat, responses, clock),
            **dict.fromkeys(
                ("interaction_get", "interaction_delete", "interaction_cancel"), StoredInteractions(responses)
            ),
            "rerank": Rerank(self._desk, providers, strict, as_body),
            **dict.fromkeys(openai_media.OPERATIONS, Media(self._desk, providers, as_body)),
            **dict.fromkeys(("retrieve", "forget", "input_items", "cancel"), Retrieval(responses, background)),
            **dict.fromkeys(("file_create", "file_list", "file_get", "file_content", "file_delete"), files),
            **dict.fromkeys(("batch_create", "batch_list", "batch_get", "batch_cancel"), batches),
            **dict.fromkeys(_MESSAGE_BATCHES, message_batches),
            "embeddings": Embedding(self._desk, providers, strict, as_body),
            "count_tokens": Counting(self._desk, providers, strict),
        }

    def serve_as(self, inbound: Inbound, who: Principal) -> Awaitable[Reply]:
        """For somebody who has been asked already: by `principal`, or a line of a batch. Raises: as `Way.serve`."""
        if inbound.route.operation not in _HOLD_MANY:  # Each of their requests is looked at when it is run.
            check_shape(inbound.body, self._limits)
        answering = self._ways[inbound.route.operation].serve(inbound, who)
        return answering if who.bodies is None else self._recorded(inbound, who, answering)

    async def _recorded(self, inbound: Inbound, who: Principal, answering: Awaitable[Reply]) -> Reply:
        return self._recorder.passing(inbound, who, await answering)

    def principal(self, inbound: Inbound) -> Awaitable[Principal]:
        """Who asks. Raises: Unauthenticated, Forbidden."""
        return self._desk.principal(inbound)
