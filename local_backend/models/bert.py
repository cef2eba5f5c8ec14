"""BERT: an encoder. Every token sees all others; a text becomes one vector, or a pair of texts a score.

Names of tensors and arithmetic follow transformers' modeling_bert.py, read 2026-11.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from local_backend.encoder_config import EncoderConfig
from local_backend.layers.linear import Linears
from local_backend.layers.norm import LayerNorm


class BertLayer:
    """Attention and MLP, each added to its input and then normalised."""

    def __init__(self, at: str, config: EncoderConfig, linears: Linears) -> None:
        c = config
        self.config = c
        names = [f"{at}attention.self.{name}" for name in ("query", "key", "value")]
        self.qkv = linears.column(names, [c.hidden_size] * 3, c.hidden_size, bias=True)
        self.out = linears.row(f"{at}attention.output.dense", c.hidden_size, c.hidden_size, bias=True)
        self.up = linears.column([f"{at}intermediate.dense"], [c.intermediate_size], c.hidden_size, bias=True)
        self.down = linears.row(f"{at}output.dense", c.hidden_size, c.intermediate_size, bias=True)
        self.norm_1 = LayerNorm(f"{at}attention.output.LayerNorm", c.hidden_size, c.norm_eps, linears)
        self.norm_2 = LayerNorm(f"{at}output.LayerNorm", c.hidden_size, c.norm_eps, linears)

    def __call__(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x: (texts, tokens, hidden); mask: (texts, 1, 1, tokens), True where there is a token."""
        texts, tokens, hidden = x.shape
        flat = x.view(texts * tokens, hidden)
        qkv = self.qkv(flat).view(texts, tokens, 3, self.config.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        flat = self.norm_1(flat + self.out(attended.transpose(1, 2).reshape(texts * tokens, hidden)))
        return self.norm_2(flat + self.down(F.gelu(self.up(flat)))).view(texts, tokens, hidden)


class Bert:
    """The whole encoder."""

    def __init__(self, config: EncoderConfig, linears: Linears) -> None:
        c, at = config, f"{config.prefix}embeddings."
        self.config = c
        self.words = linears.tensor(f"{at}word_embeddings.weight", c.vocab_size, c.hidden_size)
        self.places = linears.tensor(f"{at}position_embeddings.weight", c.max_position, c.hidden_size)
        self.types = linears.tensor(f"{at}token_type_embeddings.weight", c.types, c.hidden_size)
        self.norm = LayerNorm(f"{at}LayerNorm", c.hidden_size, c.norm_eps, linears)
        self.layers = [BertLayer(f"{c.prefix}encoder.layer.{i}.", c, linears) for i in range(c.layers)]
        if c.labels:
            self.pooler = linears.column([f"{c.prefix}pooler.dense"], [c.hidden_size], c.hidden_size, bias=True)
            self.classifier = linears.column(["classifier"], [c.labels], c.hidden_size, bias=True)

    def __call__(self, ids: torch.Tensor, types: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """ids, types: (texts, tokens), padded; lengths: (texts,). Returns: (texts, hidden), or (texts, labels)."""
        present = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        x = self.norm(self.words[ids] + self.places[: ids.shape[1]] + self.types[types])
        for layer in self.layers:
            x = layer(x, present[:, None, None])
        if self.config.labels:
            scores: torch.Tensor = self.classifier(torch.tanh(self.pooler(x[:, 0])))
            return scores
        if self.config.pooling == "first":
            pooled = x[:, 0]
        else:
            pooled = (x * present.unsqueeze(-1)).sum(dim=1) / lengths.unsqueeze(1)
        return F.normalize(pooled, dim=-1) if self.config.normalized else pooled
