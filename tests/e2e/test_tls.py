"""The listener's own certificates, and clients that must have one."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest

from gateway.cli.serving import tls_context
from gateway.config import ConfigError, load
from gateway.sections import NetworkSettings, TlsSettings
from tests.e2e.harness import house, model, provider, settings_for
from tests.e2e.test_door import CHAT, fortress
from tests.e2e.wire import chat
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.tls import certificate


async def test_the_listener_speaks_tls_and_may_ask_for_a_clients_certificate(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    ours, theirs, strangers = (certificate(tmp_path / f"{name}.pem") for name in ("ours", "theirs", "strangers"))
    tls = TlsSettings(certificate=ours, client_ca=theirs)
    async with fortress(tmp_path / "house", sqlite_template, redis_url, tls=tls) as gateway:
        url = gateway.url.replace("http://", "https://")
        assert gateway.settings.base_url.startswith("https://")
        headers = {"authorization": f"Bearer {gateway.key}"}

        def client(own: Path | None) -> httpx.AsyncClient:
            context = ssl.create_default_context(cafile=ours)
            if own is not None:
                context.load_cert_chain(own)
            return httpx.AsyncClient(verify=context, headers=headers)

        async with client(theirs) as known:
            answer = await known.post(url + CHAT, json=chat())
            assert answer.status_code == 200
            async with known.stream("POST", url + CHAT, json=chat("x-script: long=50", stream=True)) as stream:
                assert (await stream.aread()).endswith(b"data: [DONE]\n\n")
        for own in (None, strangers):
            async with client(own) as unknown:
                with pytest.raises(httpx.TransportError):
                    await unknown.post(url + CHAT, json=chat())
        async with httpx.AsyncClient() as plain:
            with pytest.raises(httpx.TransportError):
                await plain.get(gateway.url + "/health/liveness")
    assert tls_context(tls).minimum_version is ssl.TLSVersion.TLSv1_2


async def test_providers_are_verified_against_the_authorities_that_are_named(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    inside = certificate(tmp_path / "inside.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(inside)
    async with OpenAIEmulator(tls=context) as upstream:
        for ca_file, status in ((inside, 200), (None, 502)):
            folder = tmp_path / str(status)
            folder.mkdir()
            (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
            settings = settings_for(
                folder / "data",
                f"sqlite+aiosqlite:///{folder / 'farebox.db'}",
                redis_url,
                {"up": provider("openai", f"{upstream.url}/v1")},
                (model("echo", "up/echo-1"),),
                network=NetworkSettings(ca_file=ca_file),
            )
            async with house(settings) as gateway, httpx.AsyncClient() as http:
                headers = {"authorization": f"Bearer {gateway.key}"}
                answer = await http.post(gateway.url + CHAT, json=chat(), headers=headers)
                assert answer.status_code == status, answer.text
    with pytest.raises(ConfigError, match=r"network\.ca_file"):
        load(environ={}, flags={"network.ca_file": str(tmp_path / "away.pem"), "data_dir": tmp_path})


def test_files_that_are_no_certificate_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    for path in (tmp_path / "x.pem", tmp_path / "away.pem"):
        with pytest.raises(ConfigError, match=r"server\.tls: cannot be used"):
            tls_context(TlsSettings(certificate=path))
