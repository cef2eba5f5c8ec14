"""Where keys come from, and that a request waits for them only when it must."""

import asyncio
import datetime
import sys
import threading
from urllib.parse import parse_qsl

import pytest

from providers.auth.aws import BearerMint, ChainKeys, StaticKeys, key_source
from providers.auth.sigv4 import Keys
from providers.base import Credential, Endpoint
from providers.errors import AuthFailed
from tests.emulators.bedrock import ACCESS_KEY_ID, SECRET_ACCESS_KEY, signature_of
from tests.emulators.server import Emulator, Out, Request


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


async def test_configured_keys_are_used_as_they_are():
    fields = {"access_key_id": "AKID", "secret_access_key": "s", "session_token": "t"}
    source = key_source(Endpoint("bedrock", credential=Credential(fields)), Clock())
    assert await source.keys() == Keys("AKID", "s", "t")
    await source.aclose()


async def test_the_chain_is_asked_once_then_in_the_background():
    clock, loads, gate = Clock(), [], threading.Event()
    gate.set()

    def load():
        assert gate.wait(10)
        loads.append(threading.current_thread())
        return Keys(f"AKID{len(loads)}", "s")

    source = ChainKeys(load, clock)
    first = await asyncio.gather(*(source.keys() for _ in range(5)))
    assert {keys.access_key_id for keys in first} == {"AKID1"}
    assert threading.main_thread() not in loads
    gate.clear()
    clock.now += 100  # due, but still good: nobody waits
    assert (await source.keys()).access_key_id == "AKID1"
    gate.set()
    clock.now += 1000  # too old to use: whoever asks now waits
    assert (await source.keys()).access_key_id == "AKID2"
    await source.aclose()


async def test_a_failing_renewal_is_told_only_to_those_who_must_wait():
    clock, broken = Clock(), False

    def load():
        if broken:
            raise AuthFailed("gone")
        return Keys("AKID", "s")

    source = ChainKeys(load, clock)
    await source.keys()
    broken = True
    clock.now += 100
    assert (await source.keys()).access_key_id == "AKID"
    clock.now += 1000
    with pytest.raises(AuthFailed):
        await source.keys()
    broken = False
    assert (await source.keys()).access_key_id == "AKID"
    await source.aclose()


async def test_botocores_chain_is_found_from_a_profile(tmp_path, monkeypatch):
    config = tmp_path / "credentials"
    config.write_text("[farebox]\naws_access_key_id = AKPROFILE\naws_secret_access_key = hidden\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(config))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    source = key_source(Endpoint("bedrock", options={"profile": "farebox"}), Clock())
    assert await source.keys() == Keys("AKPROFILE", "hidden")
    await source.aclose()
    missing = key_source(Endpoint("bedrock", options={"profile": "nobody"}), Clock())
    with pytest.raises(AuthFailed):
        await missing.keys()
    await missing.aclose()


class StsEmulator(Emulator):
    """AssumeRole as AWS answers it, for whoever signs with the test keys. Source: STS API reference, read 2026-11."""

    def __init__(self, allowed: str) -> None:
        super().__init__()
        self.allowed = allowed
        self.sessions = 0
        self.lasts = 3600

    async def handle(self, request: Request, out: Out) -> None:
        said = dict(parse_qsl(request.body.decode()))
        fault = "AccessDenied"
        if signature_of(request, self.url, "sts") != request.headers.get("authorization"):
            fault = "SignatureDoesNotMatch"
        elif said["Action"] == "AssumeRole" and said["RoleArn"] == self.allowed and said.get("ExternalId") == "house":
            self.sessions += 1
            until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.lasts)
            body = (
                f"<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIA{self.sessions}</AccessKeyId>"
                f"<SecretAccessKey>of-the-role</SecretAccessKey><SessionToken>session</SessionToken>"
                f"<Expiration>{until:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials></AssumeRoleResult>"
                "</AssumeRoleResponse>"
            )
            await out.whole(200, body.encode(), {"content-type": "text/xml"})
            return
        told = f"<Error><Type>Sender</Type><Code>{fault}</Code><Message>no</Message></Error>"
        await out.whole(403, f"<ErrorResponse>{told}</ErrorResponse>".encode(), {"content-type": "text/xml"})


async def test_a_role_is_assumed_with_the_keys_that_are_there(monkeypatch):
    """Configured keys or the environment's; again before what it gave ends; a role that is not ours is told."""
    role = "arn:aws:iam::123456789012:role/farebox"
    async with StsEmulator(role) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        ours = Credential({"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY})
        options = {"role_arn": role, "external_id": "house"}
        clock = Clock()
        by_keys = key_source(Endpoint("bedrock", region="eu-west-1", credential=ours, options=options), clock)
        assert await by_keys.keys() == Keys("ASIA1", "of-the-role", "session")
        clock.now += 1000  # botocore is asked again; what it has is good for an hour.
        assert (await by_keys.keys()).access_key_id == "ASIA1"
        assert dict(parse_qsl(sts.last.body.decode()))["RoleSessionName"] == "farebox"
        for name, value in (("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)):
            monkeypatch.setenv(name, value)
        sts.lasts = 300
        by_chain = key_source(Endpoint("bedrock", region="eu-west-1", options=options), clock)
        assert (await by_chain.keys()).access_key_id == "ASIA2"
        clock.now += 1000  # Of these five minutes are left, so new ones are asked for.
        assert (await by_chain.keys()).access_key_id == "ASIA3"
        other = {**options, "external_id": "another"}
        refused = key_source(Endpoint("bedrock", region="eu-west-1", options=other), clock)
        with pytest.raises(AuthFailed, match="AccessDenied"):
            await refused.keys()
        for source in (by_keys, by_chain, refused):
            await source.aclose()


def test_what_is_no_role_is_refused_when_the_provider_is_made():
    with pytest.raises(ValueError, match="role_arn 'farebox' is no"):
        key_source(Endpoint("bedrock", region="eu-west-1", options={"role_arn": "farebox"}), Clock())


async def test_without_botocore_the_error_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    source = key_source(Endpoint("bedrock"), Clock())
    with pytest.raises(AuthFailed, match="not installed"):
        await source.keys()


async def test_a_minted_token_is_kept_for_half_its_life():
    clock = Clock()
    mint = BearerMint(StaticKeys(Keys("AKID", "s")), service="bedrock", region="us-east-1", clock=clock)
    first = await mint.token()
    clock.now += 3600
    assert await mint.token() == first
    clock.now += 6 * 3600
    assert await mint.token() != first
    await mint.aclose()
