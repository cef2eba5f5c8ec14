"""Sealed secrets open with their ring, in their own row, unaltered, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import kept
from gateway.config import ConfigError, load
from gateway.envelope import CannotOpen, KeyRing, Sealed, new_key_line

RING = KeyRing.parse(f"{new_key_line()}\n{new_key_line()}")


@given(st.binary(max_size=300), st.text(max_size=40))
def test_what_is_sealed_opens_for_its_row_alone(plain: bytes, of: str) -> None:
    sealed = RING.seal(plain, of)
    assert RING.open(sealed, of) == plain
    assert len(plain) < 8 or plain not in sealed.ciphertext + sealed.wrapped
    with pytest.raises(CannotOpen, match="another row"):
        RING.open(sealed, f"{of}x")


@given(st.integers(min_value=0), st.sampled_from(["wrapped", "ciphertext"]))
def test_one_altered_bit_is_noticed(at: int, part: str) -> None:
    sealed = RING.seal(b"sk-a-secret", "row")
    data = bytearray(getattr(sealed, part))
    data[at // 8 % len(data)] ^= 1 << at % 8
    altered = {"wrapped": sealed.wrapped, "ciphertext": sealed.ciphertext, part: bytes(data)}
    with pytest.raises(CannotOpen):
        RING.open(Sealed(sealed.key_id, **altered), "row")


def test_parts_of_two_rows_do_not_mix() -> None:
    one, two = RING.seal(b"one", "row 1"), RING.seal(b"two", "row 2")
    for mixed in (
        Sealed(one.key_id, two.wrapped, one.ciphertext),
        Sealed(one.key_id, one.wrapped, two.ciphertext),
        two,
    ):
        with pytest.raises(CannotOpen):
            RING.open(mixed, "row 1")


def test_what_is_sealed_for_a_tenant_opens_with_that_tenants_salt_alone() -> None:
    sealed = RING.seal(b"value", "row", b"salt of one")
    assert RING.open(sealed, "row", b"salt of one") == b"value"
    for salt in (b"", b"salt of another"):
        with pytest.raises(CannotOpen, match="salt"):
            RING.open(sealed, "row", salt)
    with pytest.raises(CannotOpen):
        RING.open(RING.seal(b"value", "row"), "row", b"salt of one")


def test_a_new_key_at_the_front_wraps_and_the_old_one_can_go() -> None:
    old = KeyRing.parse(new_key_line())
    sealed = old.seal(b"value", "row")
    line = new_key_line()
    both = KeyRing({**KeyRing.parse(line)._keys, **old._keys})
    moved = both.rewrapped(sealed, "row")
    assert (moved.key_id, moved.ciphertext) == (both.current, sealed.ciphertext)
    assert KeyRing.parse(line).open(moved, "row") == b"value"
    with pytest.raises(CannotOpen, match="not in this process's key ring"):
        old.open(moved, "row")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "id:base64"),
        ("k1:AAAA", "3 bytes"),
        ("k1:not base64", "not base64"),
        ("k1:%%%%", "not base64"),
        (f"k 1:{'A' * 43}=", "0 bytes"),
        (f"k1:{'A' * 43}= k1:{'A' * 43}=", "twice"),
    ],
)
def test_a_ring_that_is_none_is_told_without_its_keys(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        KeyRing.parse(text)
    assert "AAAA" not in str(caught.value)


def test_the_ring_is_made_once_kept_private_and_rotated(tmp_path: Path) -> None:
    settings = load(environ={}, flags={"data_dir": tmp_path})
    first = kept.key_ring(settings)
    assert kept.key_ring(settings).ids == first.ids
    assert (tmp_path / "secrets" / "key_ring").stat().st_mode & 0o077 == 0
    kept.rotate_kept_ring(tmp_path)
    second = kept.key_ring(settings)
    assert second.ids[1:] == first.ids
    assert second.open(first.seal(b"x", "r"), "r") == b"x"
    assert (tmp_path / "secrets" / "key_ring").stat().st_mode & 0o077 == 0


def test_a_ring_from_the_environment_that_is_none_stops_with_what_to_do(tmp_path: Path) -> None:
    settings = load(environ={"FAREBOX_KEY_RING": "nonsense"}, flags={"data_dir": tmp_path})
    with pytest.raises(ConfigError, match="FAREBOX_KEY_RING"):
        kept.key_ring(settings)
    assert "nonsense" not in repr(settings)
    line = new_key_line()
    assert kept.key_ring(load(environ={"FAREBOX_KEY_RING": line}, flags={"data_dir": tmp_path})).ids == (
        line.partition(":")[0],
    )
