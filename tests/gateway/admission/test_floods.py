"""Who guesses keys is slowed down, and the memory of it is bounded."""

import pytest

from gateway.admission.floods import ADDRESSES_MAX, BURST, MS_PER_GUESS, Floods, address_of
from gateway.errors import RateLimited
from tests.gateway.admission.support import NOW_MS


def test_a_burst_then_one_at_a_time() -> None:
    floods = Floods()
    for _ in range(BURST):
        floods.check("192.0.2.1", NOW_MS)
        floods.failed("192.0.2.1", NOW_MS)
    with pytest.raises(RateLimited) as refused:
        floods.check("192.0.2.1", NOW_MS)
    assert 0 < refused.value.retry_after_s <= MS_PER_GUESS / 1000
    floods.check("192.0.2.2", NOW_MS)
    floods.check("192.0.2.1", NOW_MS + MS_PER_GUESS)


def test_a_whole_ipv6_network_is_one_guesser() -> None:
    floods = Floods()
    for i in range(BURST):
        floods.failed(f"2001:db8::{i:x}", NOW_MS)
    with pytest.raises(RateLimited):
        floods.check("2001:db8::ffff", NOW_MS)
    floods.check("2001:db8:0:1::1", NOW_MS)


def test_memory_is_bounded() -> None:
    floods = Floods()
    for i in range(ADDRESSES_MAX + 5_000):
        floods.failed(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", NOW_MS)
    assert len(floods) == ADDRESSES_MAX


def test_addresses() -> None:
    assert str(address_of("::ffff:192.0.2.7")) == "192.0.2.7"
    assert address_of("") is None
    assert address_of("unix:/run/x") is None
