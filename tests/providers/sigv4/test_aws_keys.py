"""Where keys come from, and that a request waits for them only when it must."""

import asyncio
import sys
import threading

import pytest

from providers.auth.aws import BearerMint, ChainKeys, StaticKeys, key_source
from providers.auth.sigv4 import Keys
from providers.base import Credential, Endpoint
from providers.errors import AuthFailed


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
