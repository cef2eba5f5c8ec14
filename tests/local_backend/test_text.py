"""Tokens to text and back: no half characters, no stop strings, templates as transformers renders them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from transformers import AutoTokenizer

from local_backend.errors import InvalidRequest, ModelUnavailable
from local_backend.generate import Answer, Generation
from local_backend.messages import Sampling, TokenLogprobs, TokenOut
from local_backend.template import ChatTemplate
from local_backend.tokenizer import StopStrings, TextStream, Tokenizer, byte_level_alphabet
from tests.local_backend.support import CHATML, make_byte_tokenizer

TEXTS = [
    "Hello, world",
    "naïve café",
    "日本語のテキスト",
    "🙂👩‍👩‍👧 flags 🇫🇷",
    "a\u2028b\r\n\tc",
    "1234567 89",
    " lead",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_text(smollm2: Path, text: str) -> None:
    tokenizer, stream = Tokenizer(smollm2), TextStream()
    ids = tokenizer.encode(text, special=True)
    pieces = [stream.feed(tokenizer.text_bytes(i)) for i in ids]
    assert "".join(pieces) + stream.flush() == text == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert HfTokenizer.from_file(str(smollm2 / "tokenizer.json")).decode(ids) == text


def test_smollm2_keeps_its_digit_splitting_and_specials(smollm2: Path) -> None:
    tokenizer = Tokenizer(smollm2)
    assert len(tokenizer.encode("123456", special=True)) == 6
    assert tokenizer.encode("<|im_start|>", special=False) == [1]
    assert tokenizer.decode([1, 2]) == ""
    assert tokenizer.raw_bytes(1) == b"<|im_start|>"
    assert tokenizer.text_bytes(10**9) == b""
    raw = json.loads((smollm2 / "tokenizer.json").read_text())
    assert raw["decoder"]["type"] == "ByteLevel"
    assert [p["type"] for p in raw["pre_tokenizer"]["pretokenizers"]] == ["Digits", "ByteLevel"]


def test_bytes_that_never_become_a_character_are_replaced_at_the_end() -> None:
    stream = TextStream()
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.feed(b"x") == "\ufffdx"
    assert stream.feed("🙂".encode()[:3]) == ""
    assert stream.flush() == "\ufffd"


def test_alphabet_has_every_byte_once() -> None:
    assert sorted(byte_level_alphabet().values()) == list(range(256))


def test_sentencepiece_style_bytes(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {"type": "BPE", "vocab": {"▁Hi": 0, "<0xF0>": 1, "<0x9F>": 2, "<0x99>": 3, "<0x82>": 4}, "merges": []},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert Tokenizer(tmp_path).decode([0, 1, 2, 3, 4]) == " Hi🙂"


def test_unknown_or_broken_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelUnavailable, match="cannot read"):
        Tokenizer(tmp_path)
    make_byte_tokenizer(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(raw | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}})
    )
    with pytest.raises(ModelUnavailable, match="WordPiece"):
        Tokenizer(tmp_path)


@settings(deadline=None)
@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), max_size=30),
)
def test_stop_strings_are_found_however_the_text_is_sliced(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, shown, at, stopped = StopStrings(stops), "", 0, False
    for size in [*cuts, len(text)]:
        piece, stopped = matcher.feed(text[at : at + size])
        shown, at = shown + piece, at + size
        if stopped:
            break
    if not stopped:
        shown += matcher.flush()
    first_end = min((text.find(s) + len(s) for s in stops if s in text), default=None)
    if first_end is None:
        assert (shown, stopped) == (text, False)
    else:
        # Streaming stops at the first stop that is complete, wherever it began.
        assert stopped
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(s) for s in stops)
        assert not any(s in shown for s in stops)


def feed_one_by_one(answer: Answer, ids: list[int], finish: str | None) -> tuple[str, list[int], str | None, int]:
    shown, logged, ended, counted = "", [], None, 0
    for n, token in enumerate(ids):
        out = TokenOut(1, token, finish if n == len(ids) - 1 else None, 0, TokenLogprobs(-1.0, [], []))
        delta, count = answer.feed([out])
        counted += count
        if delta is not None:
            shown += delta.text
            logged += [t.token for t in delta.tokens]
            ended = delta.finish
            if ended is not None:
                break
    return shown, logged, ended, counted


def asked(*stops: str) -> Generation:
    return Generation([[1]], Sampling(max_tokens=9, stop_token_ids=(2,)), stops=list(stops))


def test_answer_cuts_at_a_stop_string_across_tokens_and_its_logprobs_with_it(tmp_path: Path) -> None:
    make_byte_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.encode("one STOP two", special=False)
    answer = Answer(0, tokenizer, asked("STOP"))
    assert feed_one_by_one(answer, ids, None) == ("one ", ids[:4], "stop", 8)
    half = Answer(0, tokenizer, asked("STOP"))
    assert feed_one_by_one(half, tokenizer.encode("one STO", special=False), "length")[0] == "one STO"


def test_answer_shows_no_stop_token_and_no_half_character(tmp_path: Path) -> None:
    make_byte_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    ids = [*tokenizer.encode("é🙂", special=False), 2]
    assert feed_one_by_one(Answer(0, tokenizer, asked()), ids, "stop") == ("é🙂", ids[:-1], "stop", 7)
    cut = tokenizer.encode("é🙂", special=False)[:-1]
    assert feed_one_by_one(Answer(0, tokenizer, asked()), cut, "length") == ("é\ufffd", cut, "length", 5)


MESSAGES = [
    [{"role": "user", "content": "Hi <b>&\"'"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "日本 🙂\n"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "go on"},
    ],
]


@pytest.mark.parametrize("messages", MESSAGES)
def test_template_renders_as_transformers_does(smollm2: Path, messages: list[dict[str, str]]) -> None:
    theirs = AutoTokenizer.from_pretrained(smollm2).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(smollm2).render(messages) == theirs


def template(tmp_path: Path, source: str) -> ChatTemplate:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": source, "bos_token": {"content": "<s>"}})
    )
    return ChatTemplate(tmp_path)


def test_template_helpers(tmp_path: Path) -> None:
    made = template(
        tmp_path,
        "{{ bos_token }}{{ messages[0]|tojson }}{% if tools is none %}-{% endif %}{{ messages[0].content.strip() }}",
    )
    assert made.render([{"role": "user", "content": " <é> "}]) == '<s>{"role": "user", "content": " <é> "}-<é>'
    assert len(template(tmp_path, "{{ strftime_now('%Y') }}").render([])) == 4


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.no_such_method() }}",
    ],
)
def test_a_template_that_loops_or_refuses_is_the_clients_error(tmp_path: Path, source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template rejects"):
        template(tmp_path, source).render([{"role": "user", "content": "x"}])


def test_template_cannot_reach_python(tmp_path: Path) -> None:
    made = template(tmp_path, "{{ ''.__class__ }}{{ messages.__class__.__mro__ }}")
    with contextlib.suppress(InvalidRequest):
        assert "class" not in made.render([{"role": "user", "content": "x"}])


def test_broken_template_stops_the_start_and_absent_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="does not compile"):
        template(tmp_path, "{% for %}")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate(tmp_path).render([])
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert ChatTemplate(tmp_path).present
