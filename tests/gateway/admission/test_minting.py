"""The look of a key: a typo is told from a key without asking anybody."""

import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.minting import ALPHABET, KEY_CHARS, accept, hash_of, mint, public_id_of
from gateway.observe.redact import redact_text
from tests.gateway.admission.support import PEPPER


def test_layout() -> None:
    key = mint(PEPPER)
    assert len(key.plain) == KEY_CHARS == 64
    assert re.fullmatch(r"fbx-[1-9A-HJ-NP-Za-km-z]{9}_[1-9A-HJ-NP-Za-km-z]{50}", key.plain)
    assert key.plain[4:13] == key.public_id
    assert len(key.hash) == 32
    assert public_id_of(key.plain, PEPPER) == key.public_id
    assert len({mint(PEPPER).plain for _ in range(200)}) == 200


@given(at=st.integers(4, 63), to=st.sampled_from(ALPHABET + "0OIl_-"))
def test_every_single_typo_is_refused(at: int, to: str) -> None:
    plain = mint(PEPPER).plain
    typo = plain[:at] + to + plain[at + 1 :]
    assert typo == plain or public_id_of(typo, PEPPER) is None


@given(st.text(max_size=80), st.binary(max_size=200))
def test_what_is_stored_is_hmac_sha256_under_any_pepper(text: str, pepper: bytes) -> None:
    assert hash_of(text, pepper) == hmac.digest(pepper, text.encode("utf-8", "surrogatepass"), "sha256")


@given(st.text(max_size=80))
def test_any_text_is_judged_without_error(text: str) -> None:
    for presented in (text, "fbx-" + text):
        public_id = public_id_of(presented, PEPPER)
        assert public_id is None or len(presented) >= 8
        assert len(hash_of(presented, PEPPER)) == 32


def test_two_swapped_characters_and_a_cut_are_refused() -> None:
    plain = mint(PEPPER).plain
    assert public_id_of(plain[:-1], PEPPER) is None
    assert public_id_of(plain + "1", PEPPER) is None
    swaps = [plain[:i] + plain[i + 1] + plain[i] + plain[i + 2 :] for i in range(14, 60) if plain[i] != plain[i + 1]]
    assert [s for s in swaps if public_id_of(s, PEPPER) is not None] == []


def test_given_keys() -> None:
    ours = mint(PEPPER)
    assert accept(ours.plain, PEPPER) == ours
    given_key = accept("sk-terraform-0123456789abcdef", PEPPER)
    assert len(given_key.public_id) == 11
    assert given_key.public_id not in given_key.plain
    assert accept(given_key.plain, PEPPER) == given_key
    assert accept(given_key.plain, b"another").public_id != given_key.public_id
    for bad in ("short", "x" * 23, ours.plain[:-1], "with a space in the middle of it", "x" * 513, "é" * 30):
        with pytest.raises(ValueError) as refused:
            accept(bad, PEPPER)
        assert bad not in str(refused.value)


def test_nothing_of_the_secret_is_shown() -> None:
    key = mint(PEPPER)
    secret = key.plain[14:]
    assert secret not in repr(key)
    shown = redact_text(f"bad key {key.plain} from client")
    assert key.public_id in shown
    assert not any(secret[i : i + 4] in shown for i in range(len(secret) - 4))
