"""Program: one rank of a tensor-parallel model writes its logits of a prompt. argv: folder, scheme, rank, size."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from local_backend.kernels.cache import AttentionBatch, KVCache
from local_backend.kernels.reference import ReferenceOps
from local_backend.layers.linear import Linears
from local_backend.messages import Sampling
from local_backend.model_config import read_model_config
from local_backend.models.llama import Llama
from local_backend.parallel import Ranks
from local_backend.quantization.neutral import SCHEMES
from local_backend.quantization.run import CpuForms, DenseLinear
from local_backend.scheduler import Chunk
from local_backend.sequence import Sequence
from local_backend.weights import Weights


def main() -> None:
    """Load this rank's share, run one prompt."""
    folder, scheme, rank, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    device, ops, ranks = torch.device("cpu"), ReferenceOps(), Ranks(rank, size)
    with torch.inference_mode():
        linears = Linears(
            Weights(folder, device),
            CpuForms(torch.float32, ops, half_weights=False),
            dtype=torch.float32,
            scheme=SCHEMES["int8"] if scheme == "int8" else None,
            ranks=ranks,
        )
        config = read_model_config(folder)
        model = Llama(config, linears, ops, max_model_len=64, device=device)
        gate_up = model.layers[0].mlp.gate_up
        if isinstance(gate_up, DenseLinear):
            (folder / f"held-{rank}-{size}").write_text(str(gate_up.weight.numel()))
        else:
            (folder / f"held-{rank}-{size}").write_text(str(linears.share(2)))
        cache = KVCache(
            config.layers, 8, 16, ranks.share(config.kv_heads, "kv heads"), config.head_dim, torch.float32, device
        )
        seq = Sequence(0, [5, 80, 33, 200, 17, 90, 41], Sampling(max_tokens=1))
        seq.block_table = [3]
        batch = AttentionBatch([Chunk(seq, 0, len(seq.tokens))], 16, device, torch.float32)
        positions = torch.arange(len(seq.tokens))
        logits = model(torch.tensor(seq.tokens), positions, cache, batch, torch.tensor([len(seq.tokens) - 1]))
    torch.save(logits, folder / f"logits-{rank}-{size}.pt")
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
