"""Tensor parallelism of a model: two processes with half of every matrix each give the logits of one with all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from local_backend.errors import ModelUnavailable
from local_backend.parallel import Ranks
from tests.local_backend.support import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_two_ranks_give_the_logits_of_one(scheme: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=2, hidden_size=64, num_attention_heads=4, attention_bias=True, vocab_size=260)
    command = [sys.executable, "-m", "tests.local_backend.parallel_rank", str(tmp_path), scheme]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(rank: int, size: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, str(rank), str(size)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )

    processes = [start(0, 1), start(0, 2), start(1, 2)]
    for process in processes:
        _, said = process.communicate(timeout=110)
        assert process.returncode == 0, said
    alone = torch.load(tmp_path / "logits-0-1.pt")
    for rank in range(2):
        shared = torch.load(tmp_path / f"logits-{rank}-2.pt")
        # int8: each rank rounds its own half of the inputs by a scale of its own.
        loose = 1e-4 if scheme == "none" else 0.05 * float(alone.abs().max())
        torch.testing.assert_close(shared, alone, atol=loose, rtol=1e-4)
    held = [int((tmp_path / f"held-{name}").read_text()) for name in ("0-1", "0-2")]
    assert held[1] * 2 == held[0]


def test_heads_that_do_not_divide_are_refused() -> None:
    assert Ranks(1, 2).share(8, "heads") == 4
    with pytest.raises(ModelUnavailable, match="3 kv heads cannot be shared out among 2 ranks"):
        Ranks(0, 2).share(3, "kv heads")
