"""The core of an encoder: takes texts as tokens, runs those of like length together, delivers vectors. No KV cache.

Same messages and same loop as the core of a model that generates; a text is one `AddRequest` that takes one step.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import torch

from local_backend.config import Settings
from local_backend.encoder_config import read_encoder_config
from local_backend.errors import BadLogits
from local_backend.kernels.reference import ReferenceOps
from local_backend.layers.linear import Linears
from local_backend.memory import return_freed_memory
from local_backend.messages import Abort, AddImages, AddRequest, Failed, Ready, Sampling, Stats, StepOutput, Vector
from local_backend.model_runner import forms_for, pick_device, pick_dtype
from local_backend.models.bert import Bert
from local_backend.weights import Weights

PADDED_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""In one step, padding included."""
PADDING = 1.25
"""A text runs with one that is longer by no more than this: what is padded is computed, too."""


class EncoderEngine:
    """Texts and the order in which they run: as they came, but like lengths together."""

    def __init__(self, model: Bert, device: torch.device, padded_tokens: int) -> None:
        self.model, self.device, self.padded_tokens = model, device, padded_tokens
        self.steps = 0
        self._waiting: deque[AddRequest] = deque()
        self._gone: set[int] = set()

    @property
    def has_work(self) -> bool:
        """True if a step would do something."""
        return bool(self._waiting)

    def take(self, message: AddImages | AddRequest | Abort) -> None:
        """Book one message."""
        assert not isinstance(message, AddImages)  # the front of an encoder takes texts alone
        if isinstance(message, AddRequest):
            self._waiting.append(message)
        else:
            self._gone.add(message.id)

    def step(self) -> StepOutput:
        """Run the oldest text and those that go well with it."""
        batch = self._pick()
        vectors: list[Vector] = []
        failed: list[Failed] = []
        if batch:
            with torch.inference_mode():
                rows = self._run([request.prompt for request in batch]).float().cpu()
            for request, row in zip(batch, rows, strict=True):
                if torch.isfinite(row).all():
                    vectors.append(Vector(request.id, row.numpy().tobytes()))
                else:
                    failed.append(Failed(request.id, BadLogits.code, "the model produced numbers that are none"))
            self.steps += 1
        return StepOutput([], failed, self._stats(), [], vectors)

    def _pick(self) -> list[AddRequest]:
        self._waiting = deque(request for request in self._waiting if request.id not in self._gone)
        self._gone.clear()
        if not self._waiting:
            return []
        first = len(self._waiting[0].prompt)
        batch: list[AddRequest] = []
        longest, rest = first, deque[AddRequest]()
        for request in self._waiting:
            length = len(request.prompt)
            fits = max(longest, length) * (len(batch) + 1) <= self.padded_tokens
            if not batch or (fits and first <= length * PADDING + 8 and length <= first * PADDING + 8):
                batch.append(request)
                longest = max(longest, length)
            else:
                rest.append(request)
        self._waiting = rest
        return batch

    def _run(self, texts: list[list[int]]) -> torch.Tensor:
        longest = max(map(len, texts))
        ids = torch.zeros(len(texts), longest, dtype=torch.int64)
        types = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            if self.model.config.labels:
                # A pair: what stands behind the first separator, which is also the last token, is the second text.
                types[row, text.index(text[-1]) + 1 : len(text)] = 1
        lengths = torch.tensor([len(text) for text in texts])
        return self.model(ids.to(self.device), types.to(self.device), lengths.to(self.device))

    def _stats(self) -> Stats:
        return Stats(
            running=0,
            waiting=len(self._waiting),
            free_blocks=1,
            total_blocks=1,
            preemptions=0,
            prefix_query_tokens=0,
            prefix_hit_tokens=0,
            steps=self.steps,
            queued_tokens=sum(len(request.prompt) for request in self._waiting),
        )


def build_encoder(model_dir: Path, settings: Settings, started: float) -> tuple[EncoderEngine, Ready]:
    """Load the encoder and run one text. Raises ModelUnavailable."""
    config = read_encoder_config(model_dir)
    device = pick_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dtype = pick_dtype(settings.dtype, device)
    weights = Weights(model_dir, device)
    with torch.inference_mode():
        # The stored float32 as it is: these models are small, and vectors of two versions must compare.
        model = Bert(config, Linears(weights, forms_for(device, dtype, ReferenceOps()), dtype=dtype))
    weights.close()
    return_freed_memory()
    engine = EncoderEngine(model, device, settings.token_budget or PADDED_TOKENS[device.type])
    engine.take(AddRequest(-1, [0, 1], Sampling(max_tokens=1)))
    engine.step()
    ready = Ready(
        max_model_len=min(settings.max_model_len or config.max_position, config.max_position),
        total_blocks=1,
        block_size=settings.block_size,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        load_seconds=time.monotonic() - started,
    )
    return engine, ready
