"""Text <-> token ids, and the bytes of each token: streamed text must never hold half a character."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

from local_backend.errors import ModelUnavailable
from local_backend.model_config import read_json

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """A model directory's tokenizer.json, with a table of what bytes each token stands for.

    Text comes from that table and not from decode(): appending one token then costs one look-up, and a character that
    spans tokens is put together by Python's incremental decoder."""

    def __init__(self, model_dir: Path) -> None:
        path = model_dir / "tokenizer.json"
        if not path.exists():
            raise ModelUnavailable(f"{model_dir} has no tokenizer.json")
        try:
            self._tokenizer = HfTokenizer.from_file(str(path))
        except Exception as error:  # the binding raises bare Exception for anything wrong with the file
            raise ModelUnavailable(f"cannot read {path}: {error}") from error
        raw = read_json(path)
        added = {t["id"]: t for t in raw.get("added_tokens", [])}
        self.special_ids = frozenset(i for i, t in added.items() if t.get("special"))
        self._special = frozenset(added[i]["content"] for i in self.special_ids)
        # Without special tokens the pattern can match nowhere.
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, sorted(self._special))) or '(?!)'})")
        self.vocab_size = self._tokenizer.get_vocab_size()
        to_bytes = _byte_rule(raw.get("decoder"))
        self._bytes: list[bytes] = [b""] * (max(self._tokenizer.get_vocab().values(), default=-1) + 1)
        for token, index in self._tokenizer.get_vocab().items():
            self._bytes[index] = token.encode() if index in added else to_bytes(token)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; `special` puts the model's own start (and end) tokens around a bare text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        return b"".join(self.text_bytes(i) for i in ids).decode("utf-8", "replace")

    def text_bytes(self, token: int) -> bytes:
        """What the token adds to an answer's text; nothing for special tokens and ids beyond the vocabulary."""
        return b"" if token in self.special_ids else self.raw_bytes(token)

    def raw_bytes(self, token: int) -> bytes:
        """The token itself, special ones by their name."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def split_special(self, text: str) -> list[tuple[str, bool]]:
        """The text in pieces, and of each whether it is a special token."""
        return [(piece, piece in self._special) for piece in self._special_pattern.split(text) if piece]

    def id_of(self, token: str) -> int | None:
        """Id of a token by its exact form."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found


class TextStream:
    """Token bytes in, whole characters out."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Characters that are complete now; the rest waits for its missing bytes."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The end: bytes that never became a character turn into U+FFFD."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Finds the first stop string in streamed text, across the borders of tokens, and lets none of it out."""

    def __init__(self, stops: list[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Returns: text that may go out, and whether a stop string was met; what follows it is dropped."""
        if not self._stops:
            return text, False
        held = self._held + text
        if found := [at for stop in self._stops if (at := held.find(stop)) >= 0]:
            self._held = ""
            return held[: min(found)], True
        keep = max(overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """The end without a stop string: what was held back belongs to the answer after all."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is not the whole of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def byte_level_alphabet() -> dict[str, int]:
    """The printable stand-ins of GPT-2's byte-level BPE. Source: openai/gpt-2 encoder.py bytes_to_unicode."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(b): b for b in plain}
    for n, byte in enumerate(b for b in range(256) if b not in set(plain)):
        table[chr(256 + n)] = byte
    return table


def _byte_rule(decoder: dict[str, Any] | None) -> Any:
    """How this tokenizer writes bytes, read from its decoder. Raises ModelUnavailable for kinds not known here."""
    kinds = [] if decoder is None else [d["type"] for d in decoder.get("decoders", [decoder])]
    if "ByteLevel" in kinds:
        alphabet = byte_level_alphabet()
        return lambda token: bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
    if "ByteFallback" in kinds:

        def rule(token: str) -> bytes:
            if found := BYTE_TOKEN.fullmatch(token):
                return bytes([int(found[1], 16)])
            return token.replace("\u2581", " ").encode()

        return rule
    raise ModelUnavailable(f"tokenizer decoder {kinds or None} is not known; known: ByteLevel, ByteFallback")
