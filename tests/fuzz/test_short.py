"""A short form of `python -m tests.fuzz`: the same rounds each time, and those that once found something."""

from __future__ import annotations

import random

import pytest

from gateway.ingress.hygiene import check_shape
from gateway.sections import ServerSettings
from tests.fuzz import decoders
from tests.fuzz.decoders import Fault, one_round, seeds

ROUNDS = 1500


def test_no_decoder_crashes_or_grows() -> None:
    known = seeds()
    assert len(known) > 50
    for seed in range(ROUNDS):
        one_round(seed, known)


@pytest.mark.parametrize("decoder", [name for name in decoders.DECODERS if name.endswith("request")])
def test_a_name_that_is_no_utf8_is_a_bad_request(decoder: str) -> None:
    """Found by it: such a name lies in a part that is read later, and what reads it raised another error."""
    for field in (b"messages", b"contents", b"input", b"prompt", b"extra"):
        data = b'{"model": "m", "max_tokens": 5, "' + field + b'": [{"a\xdb": {"b": 1}}]}'
        with pytest.raises(decoders.ProviderError):
            decoders.DECODERS[decoder](data, random.Random(0))


def test_nor_does_it_trouble_the_look_at_a_bodys_shape() -> None:
    check_shape(b'{"a\xdb": [' + b'{"b": 1},' * 20_000 + b"0]}", ServerSettings())


def test_a_decoder_that_crashes_or_grows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes(data: bytes, chance: random.Random) -> int:
        raise KeyError("x")

    def grows(data: bytes, chance: random.Random) -> int:
        return len(bytes(decoders.GROWTH_FREE_BYTES + (decoders.GROWTH_MAX + 1) * (len(data) + 1))) and 1

    for bad, said in ((crashes, "KeyError"), (grows, "held")):
        monkeypatch.setattr(decoders, "DECODERS", {"bad": bad})
        with pytest.raises(Fault, match=said):
            one_round(1, [b"{}"])
