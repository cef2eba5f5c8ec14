"""Says what billing.alerts decided to say: webhooks (signed), Slack's form, e-mail. At least once, each under its id.

A target is written by an administrator, not by the operator of the network that we stand in: its host is resolved here,
an address inside is refused unless the settings allow it, and the connection goes to the very address that was looked
at, so that a name that answers otherwise the second time gains nothing. Redirects are not followed.
Source: Slack "Sending messages using incoming webhooks"; RFC 5321, RFC 6409; read 2026-11.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import smtplib
import socket
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy import func, select

from billing import alerts
from billing.alerts import Channel, Delivery, Message
from billing.db import AsyncConnection, AsyncEngine, reading, writing
from gateway.admission.muster import DEAD_S
from gateway.config import Settings
from gateway.schema import gateways
from gateway.tasks import every
from gateway.till import MailSettings

if TYPE_CHECKING:
    import httpx

TIMEOUT_S: Final = 10.0
SIGNATURE: Final = "farebox-signature"


class NotDelivered(Exception):
    """Nobody took it, and why. It is tried again."""


class Messenger:
    """Close with `aclose`. tls: what servers are believed by; None: the system's certificates."""

    def __init__(self, settings: Settings, *, tls: ssl.SSLContext | None = None) -> None:
        self._settings = settings
        self._tls = tls
        self._http: httpx.AsyncClient | None = None
        self._making = asyncio.Lock()

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def _client(self) -> httpx.AsyncClient:
        """Made when there is somebody to tell: with what it loads it is 7 MB of a process that never has."""
        async with self._making:
            if self._http is None:
                self._http = await asyncio.to_thread(_client_of, self._tls)
            return self._http

    async def tell(self, channel: Channel, target: str, message: Message, now_s: int) -> None:
        """Raises: NotDelivered."""
        try:
            if channel is Channel.EMAIL:
                await asyncio.to_thread(self._mail, target, message)
            else:
                await self._post(channel, target, message, now_s)
        except NotDelivered:
            raise
        except (OSError, smtplib.SMTPException) as error:
            raise NotDelivered(f"{type(error).__name__}: {error}") from error

    async def _post(self, channel: Channel, target: str, message: Message, now_s: int) -> None:
        body = msgspec.json.encode(slack(message) if channel is Channel.SLACK else webhook(message))
        headers = {"content-type": "application/json", "user-agent": "farebox", "farebox-delivery": message.id}
        secret = self._settings.alerts.signing_secret
        if secret is not None and channel is Channel.WEBHOOK:
            headers[SIGNATURE] = sign(body, secret.reveal(), now_s)
        http = await self._client()
        import httpx

        url = httpx.URL(target)
        address = await resolve(url.host, url.port or (443 if url.scheme == "https" else 80),
                                private=self._settings.alerts.private_targets)  # fmt: skip
        request = http.build_request(
            "POST",
            url.copy_with(host=address),
            content=body,
            headers={**headers, "host": url.netloc.decode()},
            # Certificates are checked for the name that was asked for, not for the address.
            extensions={"sni_hostname": url.host},
        )
        try:
            answer = await http.send(request)
        except httpx.HTTPError as error:
            raise NotDelivered(f"{type(error).__name__}: {error}") from error
        if not answer.is_success:
            raise NotDelivered(f"answered {answer.status_code}")

    def _mail(self, target: str, message: Message) -> None:
        mail = self._settings.mail
        if mail.host is None:
            raise NotDelivered("no mail server: set mail.host")
        tls = self._tls or ssl.create_default_context()
        with _connect(mail, tls) as server:
            if mail.security == "starttls":
                # Raises where the server does not offer it: nothing goes out in the clear instead.
                server.starttls(context=tls)
            if mail.username is not None:
                server.login(mail.username, mail.password.reveal() if mail.password else "")
            server.send_message(letter(mail.sender, target, message))


def _client_of(tls: ssl.SSLContext | None) -> httpx.AsyncClient:
    import httpx

    # No proxy of the environment: what a webhook may reach is decided here.
    # Nothing is kept alive: the pool goes by address, and a connection whose certificate was good for one name
    # would be taken for another name at the same address.
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(
        timeout=TIMEOUT_S, follow_redirects=False, trust_env=False, limits=limits, verify=tls or True
    )


async def deliver(engine: AsyncEngine, messenger: Messenger, clock: Callable[[], int]) -> int:
    """Send what is due. Returns: how much of it was taken. For one worker at a time; a second one sends twice."""
    async with reading(engine) as db:
        waiting = await alerts.due(db, now_ns=clock())
    return sum(await every(*(_deliver(engine, messenger, each, clock) for each in waiting)))


async def _deliver(engine: AsyncEngine, messenger: Messenger, delivery: Delivery, clock: Callable[[], int]) -> bool:
    try:
        await messenger.tell(delivery.channel, delivery.target, delivery.message, clock() // 10**9)
    except NotDelivered as error:
        async with writing(engine) as db:
            await alerts.failed(db, delivery, str(error), now_ns=clock())
        return False
    async with writing(engine) as db:
        await alerts.sent(db, delivery.id, now_ns=clock())
    return True


async def evaluate_and_deliver(engine: AsyncEngine, messenger: Messenger, clock: Callable[[], int]) -> int:
    """The chore. Returns: how many messages were made or sent."""
    async with writing(engine) as db:
        now_ns = clock()
        made = await alerts.evaluate(db, now_ns=now_ns, outages=await outages(db, now_ns))
    return made + await deliver(engine, messenger, clock)


async def outages(db: AsyncConnection, now_ns: int) -> dict[str, int | None]:
    """What living gateways said of the store of limits when they last told SQL that they live."""
    told = gateways.c
    query = select(func.min(told.limits_away_since_ns)).where(told.seen_at_ns > now_ns - DEAD_S * 10**9)
    return {"the store of limits (Redis)": (await db.execute(query)).scalar()}


def webhook(message: Message) -> dict[str, object]:
    said: dict[str, object] = msgspec.to_builtins(message)
    return {"type": "farebox.alert", **said}


def slack(message: Message) -> dict[str, object]:
    # Slack takes these three for its own marks.
    text = message.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    section = {"type": "section", "text": {"type": "mrkdwn", "text": f"*Farebox*: {text}"}}
    return {"text": f"Farebox: {text}", "blocks": [section]}


def letter(sender: str, target: str, message: Message) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"] = sender, target
    made["Subject"] = f"Farebox: {message.kind.value} alert, {message.subject}".replace("\n", " ").replace("\r", " ")
    made["Message-ID"] = f"<{message.id}@farebox>"
    made.set_content(f"{message.text}\n\nAt {message.at}; rule {message.rule_id}.\n")
    return made


def sign(body: bytes, secret: str, now_s: int) -> str:
    """As payment services do: HMAC-SHA-256 of "time.body", so that a recording can be told from news."""
    mac = hmac.new(secret.encode(), f"{now_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={now_s},v1={mac}"


async def resolve(host: str, port: int, *, private: bool) -> str:
    """An address of the host that may be spoken to. Raises: NotDelivered if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotDelivered(f"{host} is not known: {error}") from error
    addresses = [str(info[4][0]) for info in found]
    for address in addresses:
        if not private and not _outside(address):
            raise NotDelivered(f"{host} is {address}, inside this network; alerts.private_targets allows that")
    return addresses[0]


def _outside(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # An IPv4 address in IPv6's clothes leads to the same place.
        ip = ip.ipv4_mapped or ip.sixtofour or ip
        if isinstance(ip, ipaddress.IPv6Address) and ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_global and not ip.is_multicast


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def _connect(mail: MailSettings, tls: ssl.SSLContext) -> smtplib.SMTP:
    assert mail.host is not None
    if mail.security == "tls":
        return smtplib.SMTP_SSL(mail.host, mail.port, timeout=TIMEOUT_S, context=tls)
    return smtplib.SMTP(mail.host, mail.port, timeout=TIMEOUT_S)
