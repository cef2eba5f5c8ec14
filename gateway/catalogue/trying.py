"""Does a provider answer us? One call that costs nothing (its list of models), or, where it has no list, an answer of
one token. What came of it is told in an operator's words."""

from __future__ import annotations

import time
from typing import Final, Literal

from msgspec import Struct

from providers.base import Call, Endpoint, Provider
from providers.errors import (
    AuthFailed,
    Broken,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    TimedOut,
    Unreachable,
    WireError,
)
from providers.neutral import ChatRequest, Message, TextPart
from providers.registry import create
from providers.transport.base import Timeouts, Transport

PATIENCE: Final = Timeouts(connect_s=5.0, first_byte_s=20.0, between_bytes_s=20.0, total_s=25.0)
"""A person waits for this."""

Stage = Literal["settings", "connect", "sign in", "answer", "done"]


class Tried(Struct, frozen=True):
    """stage: how far it came. models: how many it lists; None where it has no list. todo: empty where all is well."""

    ok: bool
    stage: Stage
    says: str
    todo: str
    took_ms: int
    models: int | None = None


async def tried(endpoint: Endpoint, transport: Transport, model: str | None = None) -> Tried:
    """model: asked for one token where there is no list, or in any case when it is named."""
    began = time.monotonic()

    def told(ok: bool, stage: Stage, says: str, todo: str = "", models: int | None = None) -> Tried:
        return Tried(ok, stage, says, todo, round((time.monotonic() - began) * 1000), models)

    try:
        provider = create(endpoint, transport, PATIENCE)
    except (ValueError, KeyError, TypeError) as error:
        return told(False, "settings", str(error), "Fill in what is missing.")
    try:
        found = await provider.models()
        if model is not None:
            await _one_token(provider, model)
            return told(True, "done", f"{model} answered.", models=len(found) or None)
        if found:
            return told(True, "done", f"It knows us and lists {len(found)} models.", models=len(found))
        return told(True, "settings", "The settings are complete. It has no list of models to ask for.",
                    "Name a model to ask it for one token: that proves the credential.")  # fmt: skip
    except ProviderError as error:
        stage, says, todo = _in_words(error, endpoint)
        return told(isinstance(error, Throttled), stage, says, todo)
    finally:
        await provider.aclose()


async def listed(endpoint: Endpoint, transport: Transport) -> tuple[str, ...]:
    """The models that the provider offers this credential. Raises: ValueError, ProviderError."""
    provider = create(endpoint, transport, PATIENCE)
    try:
        return await provider.models()
    finally:
        await provider.aclose()


async def _one_token(provider: Provider, model: str) -> None:
    request = ChatRequest(model, (Message("user", (TextPart("Hi"),)),), max_output_tokens=1)
    answer = await provider.send(Call("chat", "", request, b"", "req_test", strict=False), model)
    try:
        await answer.read()
    finally:
        await answer.aclose()


def _in_words(error: ProviderError, endpoint: Endpoint) -> tuple[Stage, str, str]:
    where = endpoint.base_url or f"{endpoint.provider}{f' in {endpoint.region}' if endpoint.region else ''}"
    said = f" It says: {error.message[:300]}" if error.message else ""
    match error:
        case Unreachable():
            todo = "Check the address, DNS, a firewall or proxy on the way, and its certificate."
            return "connect", f"No connection to {where}.{said}", todo
        case TimedOut(phase="connect"):
            return (
                "connect",
                f"{where} does not take connections within {PATIENCE.connect_s:g} s.",
                ("Check the address, and that a firewall lets us out to it."),
            )
        case TimedOut():
            return "answer", f"{where} took the request and was silent.", "Try again; then look at its status page."
        case AuthFailed():
            todo = "Check the credential: pasted whole, not expired, of this account and region, allowed to do this."
            return "sign in", f"{where} refuses the credential ({error.status or 'before the call'}).{said}", todo
        case Throttled():
            return "sign in", f"{where} knows us, and our quota is used up for now.", "Wait, or ask for more quota."
        case Overloaded():
            return "answer", f"{where} has no capacity at the moment.{said}", "Try again later."
        case Rejected(status=404):
            return (
                "answer",
                f"{where} has nothing at the path we asked.{said}",
                ("Check the base URL: most end in /v1. If it has no list of models, name one to test with."),
            )
        case Rejected():
            return "answer", f"{where} does not take the request ({error.status}).{said}", "Check model and options."
        case Broken() | WireError():
            return (
                "answer",
                f"{where} answers, but not as {endpoint.provider} does ({error.status}).{said}",
                ("Check the base URL, and that the kind is the right one."),
            )
    return "answer", f"{where}: {type(error).__name__}.{said}", "See the gateway's log."
