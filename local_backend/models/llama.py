"""Llama 2 and 3, SmolLM2, Mistral: the decoder as it is. What they differ in (windows, scaling, biases) is numbers.

Names of tensors and arithmetic follow transformers' modeling_llama.py and modeling_mistral.py, read 2026-11.
"""

from __future__ import annotations

from local_backend.layers.decoder import Decoder


class Llama(Decoder):
    """Nothing to add."""
