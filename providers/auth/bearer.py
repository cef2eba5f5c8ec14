"""The simplest credential: a key in a header."""

from __future__ import annotations

from providers.base import Credential


def bearer(credential: Credential) -> tuple[tuple[str, str], ...]:
    """`Authorization: Bearer`, or nothing for an endpoint without a key (an engine on loopback)."""
    key = credential.fields.get("api_key")
    return (("authorization", f"Bearer {key}"),) if key else ()


def header(credential: Credential, name: str) -> tuple[tuple[str, str], ...]:
    """The key alone in a header of the provider's own (`x-api-key`, `api-key`, `x-goog-api-key`)."""
    key = credential.fields.get("api_key")
    return ((name, key),) if key else ()
