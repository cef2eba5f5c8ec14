"""What is found in a text, and that it makes no difference how the text was cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.guardrails import detectors
from gateway.guardrails.patterns import detector
from gateway.guardrails.screening import Action, Screen

CARD = "4111 1111 1111 1111"
IBAN = "DE89 3704 0044 0532 0130 00"
KEY = "sk-proj-abcdefghijklmnop1234"


def whole(text: str, *names: str, action: Action = "redact", json: bool = False) -> str:
    return Screen(detectors.named(names or detectors.NAMES), action, json=json).feed(text, final=True)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"pay {CARD} now", "pay [CARD] now"),
        ("pay 4111-1111-1111-1111.", "pay [CARD]."),
        ("pay 4111 1111 1111 1112", "pay 4111 1111 1111 1112"),  # Luhn says no
        ("order 41111111111111111111111", "order 41111111111111111111111"),
        ("write to jo.doe+x@mail.example.com!", "write to [EMAIL]!"),
        ("see a@b", "see a@b"),
        (f"to {IBAN} AND more", "to [IBAN] AND more"),
        ("to GB82 WEST 1234 5698 7654 33", "to GB82 WEST 1234 5698 7654 33"),
        ("call +49 (0)30 1234567 or 415-555-2671", "call [PHONE] or [PHONE]"),
        ("from 10.0.0.1 and 2001:db8::1 at 12:30:45", "from [IP] and [IP] at 12:30:45"),
        ("version 1.2.3 and 300.1.1.1", "version 1.2.3 and 300.1.1.1"),
        (f"key {KEY}, AKIAIOSFODNN7EXAMPLE", "key [API_KEY], [API_KEY]"),
    ],
)
def test_looks_and_checksums(text: str, left: str) -> None:
    assert whole(text) == left


def test_what_replaces_a_number_in_json_is_a_string() -> None:
    said = '{"card": 4111111111111111, "note": "card 4111111111111111 \\" end", "n": [1]}'
    assert json.loads(whole(said, "card", json=True)) == {"card": "[CARD]", "note": 'card [CARD] " end', "n": [1]}


def test_a_block_lets_out_what_stood_before_it_and_nothing_else() -> None:
    screen = Screen(detectors.of_patterns(("project falcon",), "topic", ignore_case=True), "block")
    out = [screen.feed(piece) for piece in ("we call it Pro", "ject", " Fal", "con, as you know")]
    assert "".join(out) == "we call it "
    assert screen.blocked == "topic"


def test_only_what_may_become_a_match_waits() -> None:
    screen = Screen(detectors.named(("email", "card")), "redact")
    assert screen.feed("Hello there, my friend") == "Hello there, my "
    assert screen.feed(" and") == "friend "
    flag = Screen(detectors.named(("email",)), "flag")
    assert flag.feed("mail a@") == "mail a@"
    assert flag.feed("b.example ") == "b.example "
    assert flag.found == {"email": 1}


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(a+)+b", "at most 1000 characters"),
        ("(a{1,20}b?a?){1,20}", "may take for ever"),
        ("(?:a|ab){1,9}c", "no alternatives within a repeat"),
        ("x{0,5}", "one character at least"),
        ("end$", r"write \\Z"),
        (r"(a)\1", "back references"),
        ("(?=abc)a", "look ahead"),
        ("a{1,80}b{1,80}c{1,80}", "ways"),
        ("(", "not a regular expression"),
    ],
)
def test_patterns_that_no_stream_can_be_held_back_for_are_refused(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        detector("x", pattern)


_PATTERNS = ["secret falcon", r"\bab?c\b", "[a-c]{2,4}d", r"(?<!x)foo(?!y)", "a.{0,6}z", r"\d{3}-\d{2}", r"foo\Z"]
_WORDS = st.sampled_from(
    [CARD, IBAN, KEY, "a.b@c.example", "+4930123456", "1.2.3.4", "secret falcon", "abc", "bcd", "xfooy", "foo", "a--z",
     "123-45", " ", "4111", "é", "\n", ".", "@", "-", "abcabcd", "2001:db8::", "DE", '"', "\\"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(_WORDS, max_size=14),
    action=st.sampled_from(["redact", "block", "flag"]),
    own=st.lists(st.sampled_from(_PATTERNS), max_size=3),
    as_json=st.booleans(),
    data=st.data(),
)
def test_any_slicing_gives_what_the_whole_text_gives(
    words: list[str], action: Action, own: list[str], as_json: bool, data: st.DataObject
) -> None:
    text = "".join(words)
    found = (*detectors.every(), *detectors.of_patterns(tuple(own), "own", ignore_case=True))
    expected = Screen(found, action, json=as_json)
    out = expected.feed(text, final=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    sliced, left = Screen(found, action, json=as_json), ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if sliced.blocked is None:
            left += sliced.feed(text[start:end])
    if sliced.blocked is None:
        left += sliced.feed("", final=True)
    assert (left if action != "flag" else text) == (out if action != "flag" else text)
    assert sliced.found == expected.found
    assert sliced.blocked == expected.blocked
