"""Alerts reach real servers: signed webhooks, Slack's form, mail; never an address inside, never in the clear."""

import asyncio
import base64
import datetime
import hashlib
import hmac
import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from billing import alerts
from billing.accounts import Budget, Scope, Window, set_budget
from billing.alerts import Channel, Kind, Message, Rule
from billing.db import create_engine, reading, writing
from gateway import alerting
from gateway.alerting import Messenger, NotDelivered, deliver, evaluate_and_deliver
from gateway.config import Settings, load
from tests.billing.test_alerts import spend
from tests.emulators.server import Emulator, Out, Request
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World, world
from tests.gateway.cli.conftest import farebox, farebox_json

NOW_S = 1_795_000_000
MESSAGE = Message(
    "m1", "rule_1", Kind.BUDGET, "key key_1 month", "key key_1 has used <8> & more", "8.00", "10.00", 8000,
    "2026-11-23T00:00:00Z",
)  # fmt: skip


class Ear(Emulator):
    """Takes what it is sent; first says `answers`, one after another."""

    def __init__(self, *answers: int, **more: Any) -> None:
        super().__init__(**more)
        self.answers = list(answers)
        self.headers: dict[str, str] = {}

    async def handle(self, request: Request, out: Out) -> None:
        await out.whole(self.answers.pop(0) if self.answers else 200, b"ok", self.headers)


def settings(tmp_path: Path, **said: object) -> Settings:
    flags = {"data_dir": tmp_path, "alerts.private_targets": True, **said}
    return load(environ={"SIGNING": "s" * 20, "MAIL": "password"}, flags=flags)


async def tell(made: Settings, channel: Channel, target: str, tls: ssl.SSLContext | None = None) -> None:
    messenger = Messenger(made, tls=tls)
    try:
        await messenger.tell(channel, target, MESSAGE, NOW_S)
    finally:
        await messenger.aclose()


async def test_a_webhook_is_signed_and_has_an_id(tmp_path: Path) -> None:
    async with Ear() as ear:
        made = settings(tmp_path, **{"alerts.signing_secret": "env:SIGNING"})
        await tell(made, Channel.WEBHOOK, f"{ear.url}/hook?x=1")
        said = ear.last
    assert (said.method, said.path, said.query) == ("POST", "/hook", {"x": "1"})
    assert said.headers["farebox-delivery"] == "m1"
    body = said.json()
    assert (body["type"], body["id"], body["kind"], body["value_usd"]) == ("farebox.alert", "m1", "budget", "8.00")
    stamp, _, mac = said.headers["farebox-signature"].partition(",v1=")
    right = hmac.new(b"s" * 20, f"{NOW_S}.".encode() + said.body, hashlib.sha256).hexdigest()
    assert (stamp, mac) == (f"t={NOW_S}", right)


async def test_slack_gets_its_own_form_and_no_signature(tmp_path: Path) -> None:
    made = settings(tmp_path, **{"alerts.signing_secret": "env:SIGNING"})
    async with Ear() as ear:
        await tell(made, Channel.SLACK, f"{ear.url}/services/T/B/x")
        said = ear.last
    assert "farebox-signature" not in said.headers
    assert said.json()["text"] == "Farebox: key key_1 has used &lt;8&gt; &amp; more"
    assert said.json()["blocks"][0]["text"]["type"] == "mrkdwn"


async def test_the_name_that_was_asked_for_is_the_one_whose_certificate_counts(tmp_path: Path) -> None:
    server, client = certificates("localhost")
    async with Ear(tls=server) as ear:
        port = ear.url.rpartition(":")[2]
        messenger = Messenger(settings(tmp_path), tls=client)
        await messenger.tell(Channel.WEBHOOK, f"https://localhost:{port}/x", MESSAGE, NOW_S)
        assert ear.last.headers["host"] == f"localhost:{port}"
        with pytest.raises(NotDelivered, match="CERTIFICATE_VERIFY_FAILED"):
            await messenger.tell(Channel.WEBHOOK, f"https://127.0.0.1:{port}/x", MESSAGE, NOW_S)
        await messenger.aclose()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "10.1.2.3", "169.254.169.254", "192.168.0.1", "100.64.1.1", "0.0.0.0",
     "[::ffff:127.0.0.1]", "[fd00::1]", "[64:ff9b::a00:1]", "[2002:7f00:1::]", "2130706433", "127.1"],
)  # fmt: skip
async def test_an_address_inside_is_not_asked(tmp_path: Path, host: str) -> None:
    async with Ear() as ear:
        port = ear.url.rpartition(":")[2]
        made = settings(tmp_path, **{"alerts.private_targets": False})
        with pytest.raises(NotDelivered, match=r"inside this network|is not known"):
            await tell(made, Channel.WEBHOOK, f"http://{host}:{port}/x")
        assert ear.requests == []


async def test_a_name_that_leads_inside_and_a_redirect_there_gain_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Ear(302) as ear, Ear() as inside:
        ear.headers = {"location": f"{inside.url}/secret"}
        with pytest.raises(NotDelivered, match="answered 302"):
            await tell(settings(tmp_path), Channel.WEBHOOK, f"{ear.url}/x")
        assert inside.requests == []
    # One good and one bad address: nobody can say which one would be taken.
    addresses = ["93.184.215.14", "10.0.0.1"]

    async def lookup(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    with pytest.raises(NotDelivered, match=r"10\.0\.0\.1, inside"):
        await alerting.resolve("example.com", 80, private=False)
    addresses.pop()
    assert await alerting.resolve("example.com", 80, private=False) == "93.184.215.14"


async def test_nobody_there_and_no_name(tmp_path: Path) -> None:
    async with Ear(500) as ear:
        with pytest.raises(NotDelivered, match="answered 500"):
            await tell(settings(tmp_path), Channel.WEBHOOK, ear.url)
        url = ear.url
    with pytest.raises(NotDelivered, match="ConnectError"):
        await tell(settings(tmp_path), Channel.WEBHOOK, url)
    with pytest.raises(NotDelivered, match="no mail server"):
        await tell(settings(tmp_path), Channel.EMAIL, "ann@example.com")


class Post:
    """A mail server of RFC 5321's plainest kind. offers: extensions besides AUTH."""

    def __init__(self, tls: ssl.SSLContext, *, starttls: bool = True) -> None:
        self.tls, self.starttls = tls, starttls
        self.letters: list[str] = []
        self.senders: list[str] = []
        self.logins: list[bytes] = []
        self.secured = False

    async def __aenter__(self) -> "Post":
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 post\r\n")
        while line := await reader.readline():
            word = line.split()[0].upper() if line.split() else b""
            if word == b"EHLO":
                more = "" if self.secured or not self.starttls else "250-STARTTLS\r\n"
                writer.write(f"250-post\r\n{more}250 AUTH PLAIN\r\n".encode())
            elif word == b"STARTTLS":
                writer.write(b"220 go\r\n")
                await writer.drain()
                await writer.start_tls(self.tls)
                self.secured = True
            elif word == b"AUTH":
                self.logins.append(base64.b64decode(line.split()[2]))
                writer.write(b"235 good\r\n")
            elif word == b"DATA":
                writer.write(b"354 go\r\n")
                self.letters.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                writer.write(b"250 taken\r\n")
            elif word == b"QUIT":
                writer.write(b"221 bye\r\n")
                break
            else:
                self.senders.append(line.decode().strip())
                writer.write(b"250 ok\r\n")
        writer.close()


async def test_mail_goes_out_encrypted_and_signed_in(tmp_path: Path) -> None:
    server, client = certificates("localhost")
    async with Post(server) as post:
        made = settings(
            tmp_path,
            **{"mail.host": "localhost", "mail.port": post.port, "mail.username": "fbx", "mail.password": "env:MAIL",
               "mail.sender": "farebox@example.com"},
        )  # fmt: skip
        await tell(made, Channel.EMAIL, "ann@example.com", client)
    assert post.secured
    assert post.logins == [b"\0fbx\0password"]
    assert "mail from:<farebox@example.com>" in post.senders[0].lower()
    (letter,) = post.letters
    for line in ("To: ann@example.com", "Subject: Farebox: budget alert, key key_1 month", "has used <8> & more"):
        assert line in letter


async def test_mail_is_not_sent_in_the_clear_instead(tmp_path: Path) -> None:
    server, client = certificates("localhost")
    async with Post(server, starttls=False) as post:
        flags = {"mail.host": "localhost", "mail.port": post.port}
        with pytest.raises(NotDelivered, match="STARTTLS"):
            await tell(settings(tmp_path, **flags), Channel.EMAIL, "ann@example.com", client)
        assert post.letters == []
        await tell(settings(tmp_path, **flags, **{"mail.security": "none"}), Channel.EMAIL, "ann@example.com")
        assert len(post.letters) == 1
    other, _ = certificates("localhost")
    async with Post(other) as stranger:
        flags["mail.port"] = stranger.port
        with pytest.raises(NotDelivered, match="CERTIFICATE_VERIFY_FAILED"):
            await tell(settings(tmp_path, **flags), Channel.EMAIL, "ann@example.com", client)


async def test_from_a_crossing_to_its_target_and_again_until_it_is_taken(
    fresh_database_url: str, tmp_path: Path
) -> None:
    engine, clock = create_engine(fresh_database_url), [NOW_S * 10**9 + 1]
    async with Ear(503) as ear:
        async with writing(engine) as db:
            await set_budget(db, Budget(Scope.KEY, "key_1", Window.TOTAL, 10**12), at_ns=1)
            rule = Rule("rule_1", Kind.BUDGET, 8000, Channel.WEBHOOK, f"{ear.url}/hook", 1)
            await alerts.add_rule(db, rule)
        await spend(engine, tmp_path / "journal", 1)
        messenger = Messenger(settings(tmp_path))
        assert await evaluate_and_deliver(engine, messenger, lambda: clock[0]) == 1
        assert await evaluate_and_deliver(engine, messenger, lambda: clock[0]) == 0  # Not due yet.
        clock[0] += 30 * 10**9
        assert await deliver(engine, messenger, lambda: clock[0]) == 1
        clock[0] += 10**15
        assert await evaluate_and_deliver(engine, messenger, lambda: clock[0]) == 0
        await messenger.aclose()
        assert len({request.headers["farebox-delivery"] for request in ear.requests}) == 1
        assert len(ear.requests) == 2
    async with reading(engine) as db:
        (kept,) = await alerts.deliveries(db)
    assert (kept.attempts, kept.problem, kept.due_ns) == (2, None, None)
    await engine.dispose()


async def test_rules_by_the_admin_api(small_world: World) -> None:
    async with Browser(small_world.app()) as browser:
        await browser.sign_in(await small_world.link())
        new = {"kind": "budget", "threshold": "82.5", "channel": "slack", "target": "https://hooks.example.com/x"}
        made = await browser.send("POST", "/alerts", new)
        assert (made["threshold"], made["scope"]) == ("82.50", None)
        low = {"kind": "balance", "threshold": "10", "channel": "email", "target": "ann@example.com"}
        small_world.now_ns += 1  # In the order they were made, which the clock tells.
        await browser.send("POST", "/alerts", low)
        assert [rule["kind"] for rule in await browser.get("/alerts")] == ["budget", "balance"]
        for change in ({"threshold": "x"}, {"target": "ftp://x"}, {"threshold": "0"}, {"threshold": "8.255"}):
            bad = await browser.call("POST", "/alerts", {**new, **change})
            assert bad.status_code == 422, change
        await browser.send("DELETE", f"/alerts/{made['id']}")
        gone = await browser.call("DELETE", f"/alerts/{made['id']}")
        assert gone.status_code == 404
        assert len(await browser.get("/alerts")) == 1
        assert await browser.get("/alerts/deliveries") == []


def test_rules_by_the_command(tmp_path: Path) -> None:
    farebox("migrate", cwd=tmp_path)
    made = farebox_json("alerts", "add", "budget", "80%", "email", "ann@example.com", "--scope", "key", cwd=tmp_path)
    assert made["threshold"] == "80 %"
    assert farebox_json("alerts", "list", cwd=tmp_path)["rules"] == [made]
    for bad in (["budget", "lots"], ["budget", "0.001%"], ["balance", "80%"], ["anomaly", "50%"]):
        assert "fix" in farebox("alerts", "add", *bad, "email", "a@b.c", cwd=tmp_path, check=2).stderr
    refused = farebox("alerts", "test", made["id"], cwd=tmp_path, check=1)
    assert "mail.host" in refused.stderr
    assert farebox_json("alerts", "sent", cwd=tmp_path) == {"deliveries": []}
    farebox("alerts", "remove", made["id"], cwd=tmp_path)
    farebox("alerts", "remove", made["id"], cwd=tmp_path, check=1)


@pytest.fixture
async def small_world(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[World]:
    copy = shutil.copy(sqlite_template, tmp_path / "farebox.db")
    async with world(f"sqlite+aiosqlite:///{copy}", tmp_path) as built:
        yield built


def certificates(name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server with a certificate of its own making, and a client that believes that one alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36_500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(pem + private)
        file.flush()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(file.name)
    client = ssl.create_default_context(cadata=pem.decode())
    return server, client
