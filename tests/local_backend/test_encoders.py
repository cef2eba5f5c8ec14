"""Encoders: vectors and scores equal transformers', the endpoints by openai's SDK, bad input, and many at once."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel

from local_backend.catalogue import pull
from local_backend.encoder import build_encoder
from local_backend.messages import Abort, AddRequest, Sampling
from tests.local_backend.support import EngineProcess, cache_dir, running_engine, settings

MINILM = "all-minilm-l6-v2"
TEXTS = [
    "A cat sits on the mat.",
    "Where can I find the train station?",
    "Ein Kätzchen schläft. 🙂",
    "The derivative of x squared is two x. " * 12,
    "a",
]
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="session")
def minilm() -> Path:
    return pull(MINILM, cache_dir(), lambda done, total, note: None)


@pytest.fixture(scope="session")
def encoder(minilm: Path) -> Iterator[EngineProcess]:
    with running_engine(minilm, "--served-name", MINILM) as engine:
        yield engine


def reference(folder: Path, texts: list[str]) -> np.ndarray:
    """What sentence-transformers does: BERT, mean over tokens, length one."""
    tokenizer = HfTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    model = BertModel.from_pretrained(folder).train(False)
    rows = []
    with torch.inference_mode():
        for text in texts:
            hidden = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
            rows.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy())
    return np.stack(rows)


def test_vectors_equal_transformers_in_one_batch(encoder: EngineProcess, minilm: Path) -> None:
    want = reference(minilm, TEXTS)
    with openai.OpenAI(base_url=encoder.url + "/v1", api_key="-", max_retries=0) as sdk:
        answer = sdk.embeddings.create(model=MINILM, input=TEXTS)  # the SDK asks for base64
        assert [row.index for row in answer.data] == list(range(len(TEXTS)))
        np.testing.assert_allclose([row.embedding for row in answer.data], want, atol=1e-5)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 100
        alone = sdk.embeddings.create(model=MINILM, input=TEXTS[0], encoding_format="float")
        np.testing.assert_allclose(alone.data[0].embedding, want[0], atol=1e-5)
        ids = HfTokenizer.from_file(str(minilm / "tokenizer.json"))
        ids.no_padding()
        again = sdk.embeddings.create(model=MINILM, input=[ids.encode(TEXTS[0]).ids])
        np.testing.assert_allclose(again.data[0].embedding, want[0], atol=1e-5)


def test_documents_are_ranked_by_what_they_say(encoder: EngineProcess) -> None:
    documents: list[Any] = ["Bananas are yellow.", {"text": "Paris is the capital of France."}, "Cats sleep a lot."]
    body = {"model": MINILM, "query": "What is the capital of France?", "documents": documents, "top_n": 2}
    reply = httpx.post(encoder.url + "/v1/rerank", json=body | {"return_documents": True}, timeout=60).json()
    assert next(result["index"] for result in reply["results"]) == 1
    assert len(reply["results"]) == 2
    assert reply["results"][0]["document"]["text"] == "Paris is the capital of France."
    assert reply["results"][0]["relevance_score"] > 0.5 > reply["results"][1]["relevance_score"]


BAD: list[tuple[str, Any, str, str | None]] = [
    ("/v1/embeddings", {"input": ""}, "empty_prompt", "input[0]"),
    ("/v1/embeddings", {"input": []}, "invalid_request", "input"),
    ("/v1/embeddings", {"input": ["a", 1]}, "invalid_request", "input"),
    ("/v1/embeddings", {"input": [[1, 99999]]}, "invalid_request", "input[0]"),
    ("/v1/embeddings", {"input": "word " * 600}, "context_length_exceeded", "input[0]"),
    ("/v1/embeddings", {"input": "a", "dimensions": 7}, "unsupported", "dimensions"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "invalid_request", "encoding_format"),
    ("/v1/rerank", {"query": "a", "documents": []}, "invalid_request", "documents"),
    ("/v1/rerank", {"query": "a", "documents": [{}]}, "invalid_request", "documents[0]"),
    ("/v1/chat/completions", {"messages": []}, "unsupported", None),
]


def test_bad_input_is_refused_by_name(encoder: EngineProcess) -> None:
    for path, body, code, param in BAD:
        reply = httpx.post(encoder.url + path, json={"model": MINILM} | body, timeout=60)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["param"]) == (400, code, param), (path, body, error)
    card = httpx.get(encoder.url + "/v1/models", timeout=60).json()["data"][0]
    assert card["capabilities"] == {"operations": ["embeddings", "rerank"]}
    assert card["max_model_len"] == 512


async def test_many_at_once_get_each_their_own(encoder: EngineProcess) -> None:
    async with httpx.AsyncClient(base_url=encoder.url, timeout=60) as http:

        async def ask(n: int) -> bytes:
            body = {"model": MINILM, "input": f"Number {n} " + "and more " * (n % 7), "encoding_format": "base64"}
            reply = await http.post("/v1/embeddings", json=body)
            return base64.b64decode(reply.json()["data"][0]["embedding"])

        together = await asyncio.gather(*(ask(n) for n in range(40)))
        for n in (0, 13, 39):
            np.testing.assert_allclose(
                np.frombuffer(await ask(n), np.float32), np.frombuffer(together[n], np.float32), atol=1e-5
            )


def pair_tokenizer(folder: Path) -> HfTokenizer:
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{n}" for n in range(56))]
    tokenizer = HfTokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize("labels", [1, 3])
def test_a_cross_encoder_scores_pairs_as_transformers_does(tmp_path: Path, labels: int) -> None:
    torch.manual_seed(3)
    model = BertForSequenceClassification(BertConfig(**(TINY | {"num_labels": labels}))).train(False)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(0.0, 0.3)
    model.save_pretrained(tmp_path)
    tokenizer = pair_tokenizer(tmp_path)
    pairs = [("w1 w2", "w3"), ("w9", "w4 w5 w6 w7"), ("w1 w2 w3", "w3 w2 w1")]
    engine, ready = build_encoder(tmp_path, settings(), 0.0)
    assert ready.max_model_len == 40
    for n, pair in enumerate(pairs):
        engine.take(AddRequest(n, tokenizer.encode(*pair).ids, Sampling(max_tokens=1)))
    engine.take(AddRequest(9, [1, 2], Sampling(max_tokens=1)))
    engine.take(Abort(9))
    got: dict[int, np.ndarray] = {}
    while engine.has_work:
        got |= {vector.id: np.frombuffer(vector.values, np.float32) for vector in engine.step().vectors}
    assert sorted(got) == [0, 1, 2]
    for n, pair in enumerate(pairs):
        encoded = tokenizer.encode(*pair)
        with torch.inference_mode():
            want = model(torch.tensor([encoded.ids]), token_type_ids=torch.tensor([encoded.type_ids])).logits[0]
        np.testing.assert_allclose(got[n], want.numpy(), atol=1e-4)
