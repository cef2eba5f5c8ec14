"""What every section of the settings is made of, and the section of the listening side: address, limits, patience.

`config.py` puts the whole together and reads files and environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from gateway.config_parts import Secret

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Port = Annotated[int, Meta(ge=0, le=65_535)]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every section refuses names that it does not know: a misspelt limit must not be a missing limit."""


class TlsSettings(Section, frozen=True):
    """Certificates of the listener, as PEM files. Given: it speaks TLS 1.2 or newer and nothing else."""

    certificate: Path
    """The chain, our own certificate first."""
    key: Path | None = None
    """None: it stands in the certificate's file."""
    client_ca: Path | None = None
    """Given: a client must show a certificate signed by one of these, beside its key (mutual TLS)."""


class NetworkSettings(Section, frozen=True):
    """The way to providers. Certificates are always verified."""

    ca_file: Path | None = None
    """PEM file of authorities to trust in place of the system's: for providers inside, or a proxy that opens TLS."""


class ServerSettings(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 4000
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    drain_s: Seconds = 30.0
    """How long a stop waits for open streams before it cuts them."""
    reuse_port: bool = False
    """Share the port with another `serve` of the same user (SO_REUSEPORT), so that a new one takes over before the old
    one drains."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For is believed. Empty: nobody's, so an IP allow list cannot be talked around."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask the data plane from a browser, as `https://app.example`, or `*` for any. Empty: none.
    A key in a page is a key in the visitor's hands."""
    public_url: str | None = None
    """What clients call us, for the links we print. None: http://host:port."""
    admin_port: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    """Given: dashboard, admin API and metrics are served on this port alone, and the first one answers the clients of
    models, health checks and payment webhooks, nothing else. None: everything on one port."""
    admin_host: str = "127.0.0.1"
    """Address of the admin port."""
    tls: TlsSettings | None = None
    """For both ports."""

    max_body_bytes: Annotated[int, Meta(ge=1024)] = 20 * 1024 * 1024
    max_pending_bytes: Annotated[int, Meta(ge=1024)] = 512 * 1024 * 1024
    """Of all bodies together that are still on their way in, of each process; beyond it one more is told 503."""
    max_head_bytes: Annotated[int, Meta(ge=1024)] = 64 * 1024
    """Request line and headers together; more is a 431."""
    max_messages: Annotated[int, Meta(ge=1)] = 10_000
    """Messages of one request; more is a 400. Also texts of one embeddings request."""
    max_tools: Annotated[int, Meta(ge=1)] = 1_024
    max_parts: Annotated[int, Meta(ge=1)] = 100_000
    """Content parts of one request, all messages together."""
    max_connections: Annotated[int, Meta(ge=1)] = 16_384
    """Open at once, of each process; one more is told 503 and closed."""
    max_connections_per_address: Annotated[int, Meta(ge=1)] | None = None
    """None: no limit, since a load balancer in front is one address."""
    head_timeout_s: Seconds = 20.0
    """From the first byte of a request (or a new connection) to the end of its headers."""
    body_timeout_s: Seconds = 30.0
    """For a body; every 8 KiB that have come give it another second, so a slow line is no attack and a drip is."""
    stalled_client_s: Seconds = 120.0
    """A client that takes no byte of its answer for so long is cut off, and its upstream with it."""

    heartbeat_s: Seconds | None = 15.0
    """After so much silence at most, a comment on an event stream tells client and proxies that somebody is there.
    Before the first event that takes the status along: a later failure is told in the stream. None: never."""
    gone_client: Literal["finish", "cancel"] = "finish"
    """What becomes of a whole (not streamed) answer whose client has left. finish: it is read to its end and charged as
    reported, since the provider bills it. cancel: the call is cut, and its prompt is charged by estimate."""

    @property
    def admin_listener(self) -> ServerSettings:
        """The same server at the admin port, if there is one."""
        return self if self.admin_port is None else replace(self, host=self.admin_host, port=self.admin_port)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can ask."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


class BatchSettings(Section, frozen=True):
    """`/v1/batches`, which the gateways themselves run."""

    parallel: Annotated[int, Meta(ge=0, le=1000)] = 8
    """Lines at once, of each process. 0: this one runs none and leaves them to others."""
    lease_s: Seconds = 60.0
    """After so long the lines of a process that died are run by another."""
    retention_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """How long files are kept, uploaded ones and outputs."""


class ReplicaSettings(Section, frozen=True):
    """Engines that join providers with `replicas = true`."""

    token: Secret | None = None
    """What an engine shows to join one. None: none may."""
    lease_s: Annotated[float, Meta(ge=1, le=3600)] = 15.0
    """A replica that has not renewed its place for so long is gone."""


class TimeoutSettings(Section, frozen=True):
    """Seconds, for calls to providers."""

    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 120.0
    between_bytes_s: Seconds = 60.0
    total_s: Seconds = 900.0


class AdmissionSettings(Section, frozen=True):
    """What is reserved before a request is sent, and what becomes of it when its gateway dies."""

    lease_s: Annotated[float, Meta(ge=0.5, le=3600)] = 60.0
    """A dead gateway's parallel slots are free after this, and its reservations looked at."""
    store_away: Literal["refuse", "local_share"] = "refuse"
    """What is admitted while the store of limits (Redis) is not there. refuse: nothing that has a limit or budget.
    local_share: what this gateway has reserved in advance; no hard budget is overdrawn by it."""
    local_share_percent: Annotated[int, Meta(ge=1, le=50)] = 5
    """Of each budget in use that every gateway process holds in advance, and of each rate limit that it then allows."""
    orphans: Literal["whole_estimate", "input_only", "waive"] = "whole_estimate"
    """What a request costs whose gateway died before it knew: all that was held, the prompt alone, or nothing."""


class LogSettings(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, JSON lines else."""


class TelemetrySettings(Section, frozen=True):
    """OpenTelemetry by OTLP over HTTP (the extra `farebox[otel]`), and Sentry (`farebox[sentry]`)."""

    otlp_endpoint: str | None = None
    """As http://collector:4318, without /v1/traces. None: nothing is traced, and nothing of it is loaded."""
    headers: dict[str, Secret] = field(default_factory=dict)
    """What the collector wants to see, as {authorization = "env:OTLP_TOKEN"}."""
    service_name: str = "farebox"
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Of the requests whose client has not decided: its own decision is kept to."""
    metrics: bool = True
    """gen_ai.client.token.usage and gen_ai.client.operation.duration go the same way."""
    every_s: Annotated[float, Meta(ge=0.05, le=600)] = 5.0
    """How often what was collected leaves."""
    sentry_dsn: Secret | None = None
    """Unforeseen errors go there, without bodies, headers or keys. None: nowhere."""
