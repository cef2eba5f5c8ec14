"""Tensor parallelism as processes. The core is rank 0: it starts the others, agrees with them, tells them each pass.

A rank beyond the first is `python -m local_backend.rank`, started by the core with pipes for frames. It holds its share
of the weights and of the cache, makes each pass that it is told of, and gives its part of every sum through
torch.distributed: gloo on CPU, NCCL on GPUs. It plans and samples nothing. If one ends, all do: half a model is none.
"""

from __future__ import annotations

import io
import os
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import torch
import torch.distributed as dist
from msgspec import Struct

from local_backend.config import Settings, core_environment
from local_backend.errors import EngineError, ModelUnavailable
from local_backend.forward import Pass
from local_backend.memory import CachePlan
from local_backend.messages import Fatal, read_frame, send
from local_backend.model_config import read_model_config
from local_backend.model_runner import ModelRunner, pick_device
from local_backend.parallel import Company, Ranks
from local_backend.parent import die_with_parent, quiet_child

HERE = "127.0.0.1"
MEET_WITHIN = timedelta(minutes=5)


class Join(Struct, frozen=True, array_like=True, tag=True):
    """First message to a rank: what to load, and as whom."""

    settings: Settings
    model_dir: str
    rank: int


class Cache(Struct, frozen=True, array_like=True, tag=True):
    """What a rank can hold, then what all hold; the second time with the port at which they meet."""

    blocks: int
    max_model_len: int
    port: int = 0


Message = Join | Cache | Pass

store_at: Any = dist.TCPStore  # type: ignore[attr-defined]  # public, but not said to be

_from_rank = msgspec.msgpack.Decoder(Cache | Fatal).decode
_to_rank = msgspec.msgpack.Decoder(Message).decode


def lead(model_dir: Path, settings: Settings) -> Company:
    """Start the other ranks, if there are to be any. Raises ModelUnavailable if the model cannot be shared out."""
    ranks = Ranks(0, settings.tensor_parallel)
    if ranks.size == 1:
        return Company()
    config = read_model_config(model_dir)
    if config.vision is not None:
        raise ModelUnavailable("tensor_parallel shares out models of text alone; this one takes images")
    ranks.share(config.heads, "heads")
    ranks.share(config.kv_heads, "kv heads")
    pick_device(settings.device, ranks)
    return Leader(model_dir, settings, ranks)


class Leader(Company):
    """The others as rank 0 sees them."""

    def __init__(self, model_dir: Path, settings: Settings, ranks: Ranks) -> None:
        self.ranks = ranks
        self._device = pick_device(settings.device, ranks)
        self._others = [
            subprocess.Popen(
                [sys.executable, "-m", "local_backend.rank"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=core_environment(),
            )
            for _ in range(1, ranks.size)
        ]
        for rank, other in enumerate(self._others, 1):
            self._send(other, Join(settings, str(model_dir), rank))

    def agree(self, plan: CachePlan) -> CachePlan:
        """See Company. Raises ModelUnavailable with what another rank could not do."""
        plans = [plan]
        for rank, other in enumerate(self._others, 1):
            assert isinstance(other.stdout, io.BufferedReader)
            body = read_frame(other.stdout)
            said = Fatal("", "it ended") if body is None else _from_rank(body)
            if isinstance(said, Fatal):
                raise ModelUnavailable(f"rank {rank} of {self.ranks.size} could not load: {said.message}")
            plans.append(replace(plan, blocks=said.blocks, max_model_len=said.max_model_len))
        least = replace(plan, blocks=min(p.blocks for p in plans), max_model_len=min(p.max_model_len for p in plans))
        store = store_at(HERE, 0, self.ranks.size, is_master=True, wait_for_workers=False, timeout=MEET_WITHIN)
        for other in self._others:
            self._send(other, Cache(least.blocks, least.max_model_len, store.port))
            threading.Thread(target=_end_with, args=(other,), daemon=True).start()
        meet(store, self.ranks, self._device)
        return least

    def tell(self, whole: Pass) -> None:
        """See Company."""
        for other in self._others:
            self._send(other, whole)

    def _send(self, other: subprocess.Popen[bytes], message: Struct) -> None:
        assert isinstance(other.stdin, io.BufferedWriter)
        send(other.stdin, message)
        other.stdin.flush()


class Follower(Company):
    """Rank 0 as the others see it."""

    def __init__(self, ranks: Ranks, device: torch.device, inbox: queue.SimpleQueue[Message], out: BinaryIO) -> None:
        self.ranks = ranks
        self._device, self._inbox, self._out = device, inbox, out

    def agree(self, plan: CachePlan) -> CachePlan:
        """See Company."""
        send(self._out, Cache(plan.blocks, plan.max_model_len))
        agreed = self._inbox.get()
        assert isinstance(agreed, Cache)
        store = store_at(HERE, agreed.port, self.ranks.size, is_master=False, timeout=MEET_WITHIN)
        meet(store, self.ranks, self._device)
        return replace(plan, blocks=agreed.blocks, max_model_len=agreed.max_model_len)


def meet(store: Any, ranks: Ranks, device: torch.device) -> None:
    """Become one group; returns when all are there."""
    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=MEET_WITHIN)


def _end_with(other: subprocess.Popen[bytes]) -> None:
    """Thread: when a rank ends the core ends, in the middle of a sum if need be; the front starts all of them again."""
    status = other.wait()
    sys.stderr.write(f"local_backend: a rank ended with status {status}, and the core with it\n")
    os._exit(1)


def _read(source: BinaryIO, inbox: queue.SimpleQueue[Message]) -> None:
    """Thread: stdin into the inbox. At its end rank 0 is gone, and so are we."""
    while (body := read_frame(source)) is not None:
        inbox.put(_to_rank(body))
    os._exit(0)


def main() -> int:
    """Make the passes that come on stdin until it ends."""
    die_with_parent(signal.SIGKILL)  # a rank that hangs in a sum, or is stopped, hears no end of file
    out = quiet_child()
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, inbox), daemon=True).start()
    join = inbox.get()
    assert isinstance(join, Join)
    ranks = Ranks(join.rank, join.settings.tensor_parallel)
    try:
        device = pick_device(join.settings.device, ranks)
        runner = ModelRunner(Path(join.model_dir), join.settings, Follower(ranks, device, inbox, out))
    except EngineError as error:
        send(out, Fatal(error.code, error.message))
        return 2
    with torch.inference_mode():
        while True:
            whole = inbox.get()
            assert isinstance(whole, Pass)
            runner.forward(whole)


if __name__ == "__main__":
    sys.exit(main())
