"""What a client wants, in nobody's words, and what its SDK made of the answer."""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

import anthropic
import azure.core.exceptions
import cerebras.cloud.sdk as cerebras
import groq
import openai
from botocore.exceptions import ClientError, EventStreamError
from google.genai import errors as genai
from google.genai._gaos.lib.compat_errors import APIStatusError as InteractionsError

TOOL = "get_weather"
TOOL_SCHEMA = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
# As much of a PDF as tells what it is.
PDF = b"%PDF-1.7\n%%EOF\n"
PDF_URL = "https://files.example/report.pdf"
# One white pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


# SDKs give a connection five seconds. Clients, gateway and backends share one loop here, which building an SDK's client
# (30 ms of CPU) holds up: on a machine at load 30 that was longer, and the cell red (seen 2026-11).
PATIENCE_S = 60.0


class NotOffered(Exception):
    """The SDK, or the API it was written for, has no word for this."""


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: dict[str, Any]


@dataclass
class Seen:
    """What an SDK made of an answer. turn: the answer in the SDK's own form, to be sent back as history."""

    text: str = ""
    texts: list[str] = field(default_factory=list)
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    turn: Any = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int = 0
    cache_read_tokens: int = 0
    logprobs: bool = False


@dataclass(frozen=True)
class Ask:
    """after, results: an earlier answer that called tools, and what they said. cache: mark the system text."""

    said: str
    system: str | None = None
    stream: bool = False
    tools: bool = False
    forced: bool = False
    after: Seen | None = None
    results: tuple[str, ...] = ()
    schema: bool = False
    image: bool = False
    pdf: Literal["", "bytes", "address"] = ""
    reasoning: bool = False
    cache: bool = False
    stop: str | None = None
    seed: int | None = None
    n: int | None = None
    logprobs: bool = False
    max_tokens: int = 100


class Door(Protocol):
    """Where a gateway is and what opens it. url: without /v1."""

    @property
    def url(self) -> str: ...

    @property
    def v1(self) -> str: ...

    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Address:
    """A door that is known by its address alone."""

    url: str
    key: str

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


class Client(ABC):
    """One SDK at one gateway. Its own retries are off: each ask is one request."""

    name: ClassVar[str]
    package: ClassVar[str]
    note: ClassVar[str] = ""
    """What a reader of its table should know."""

    def __init__(self, gateway: Door) -> None:
        self.gateway = gateway
        self._stranger: Self | None = None

    @property
    def stranger(self) -> Self:
        """The same SDK with a key of nobody, built once."""
        if self._stranger is None:
            self._stranger = type(self)(Address(self.gateway.url, "fbx_not-a-key-of-ours-000000000000"))
        return self._stranger

    async def ended(self) -> None:
        """Gives back what this and its stranger hold."""
        if self._stranger is not None:
            await self._stranger.aclose()
        await self.aclose()

    @abstractmethod
    async def ask(self, alias: str, ask: Ask) -> Seen:
        """Raises: NotOffered; whatever the SDK raises for an error."""

    async def count(self, alias: str, ask: Ask) -> int:
        raise NotOffered

    async def aclose(self) -> None:  # noqa: B027 - a default, not a hook that was forgotten
        """Gives connections back."""


def arguments_of(text: str) -> dict[str, Any]:
    """Arguments as every SDK but Google's and AWS's hands them over: JSON text."""
    found: dict[str, Any] = json.loads(text or "{}")
    return found


class Said:
    """An SDK's exception, told in one form. code: the word that AWS's clients go by, None elsewhere."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.headers: Any = {}
        self.code: str | None = None
        match error:
            case (
                openai.APIStatusError()
                | anthropic.APIStatusError()
                | groq.APIStatusError()
                | cerebras.APIStatusError()
                | InteractionsError()
            ):
                self.status: int | None = error.status_code
                self.headers = error.response.headers
                self.message = str(error.message)
            case openai.APIError() | anthropic.APIError() | groq.APIError() | cerebras.APIError():
                self.status, self.message = None, str(error.message)
            case genai.APIError():
                self.status, self.message = error.code, str(error.message)
            case ClientError() | EventStreamError():
                meta = error.response.get("ResponseMetadata", {})
                self.status, self.headers = meta.get("HTTPStatusCode"), meta.get("HTTPHeaders", {})
                self.code = error.response["Error"]["Code"]
                self.message = error.response["Error"]["Message"]
            case azure.core.exceptions.HttpResponseError():
                self.status, self.message = error.status_code, str(error.message)
            case _:
                raise error

    @property
    def is_refusal(self) -> bool:
        """The gateway refused by name what the backend has no equal for."""
        return self.status == 400 and "support" in self.message
