"""Tokenizer of a GGUF file -> tokenizer.json and tokenizer_config.json.

The trap: transformers 5 writes for such a file a mixed decoder and loses the digit splitting, after which grammars
reject legal text. Decoder and pre-tokenizer are therefore named here, model family by model family.
Source: llama.cpp src/llama-vocab.cpp (pre-tokenizer table), read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from local_backend.errors import ModelUnavailable

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _bytes_only() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_bytes() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _bytes_only()])


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": _digits_then_bytes,
    "gpt-2": _bytes_only,
    "default": _bytes_only,
    "llama-bpe": lambda: _split(LLAMA3_SPLIT),
    "llama3": lambda: _split(LLAMA3_SPLIT),
}


def tokenizer_from_gguf(fields: dict[str, Any], target: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json. Raises ModelUnavailable for a kind not known here."""
    try:
        _write(fields, target)
    except KeyError as error:
        raise ModelUnavailable(f"the GGUF file lacks {error}") from None


def _write(fields: dict[str, Any], target: Path) -> None:
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ModelUnavailable(f"GGUF tokenizer {kind!r}/{pre!r} is not known; known: gpt2/{sorted(PRE_TOKENIZERS)}")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, kind in zip(tokens, types, strict=True)
            if kind == CONTROL
        ]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    )
    bos = fields.get("tokenizer.ggml.bos_token_id")
    add_bos = bool(fields.get("tokenizer.ggml.add_bos_token", False))
    if bos is not None and add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=None, special_tokens=[(tokens[bos], bos)]
        )
    tokenizer.save(str(target / "tokenizer.json"))
    eos = fields["tokenizer.ggml.eos_token_id"]
    config = {
        "bos_token": tokens[bos] if bos is not None else None,
        "eos_token": tokens[eos],
        "add_bos_token": add_bos,
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    (target / "tokenizer_config.json").write_bytes(msgspec.json.encode(config))
