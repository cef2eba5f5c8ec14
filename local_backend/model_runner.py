"""Step -> tensors -> sampled tokens. The scheduler's integers become tensors here, once a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from local_backend.adapters import Adapters
from local_backend.config import Settings, adapter_folders
from local_backend.errors import ModelUnavailable
from local_backend.forward import Pass, pass_of
from local_backend.kernels import ops_for
from local_backend.kernels.cache import AttentionBatch, KVCache
from local_backend.kernels.cpu import CpuOps
from local_backend.kernels.reference import ReferenceOps
from local_backend.layers.linear import Linears
from local_backend.memory import CachePlan, free_host_memory, plan_cache, return_freed_memory
from local_backend.model_config import ModelConfig, read_model_config
from local_backend.models import build
from local_backend.models.smolvlm import SmolVlm
from local_backend.parallel import ALONE, Company, Ranks
from local_backend.pictures import Pictures
from local_backend.quantization.neutral import SCHEMES, Scheme
from local_backend.quantization.run import CpuForms, Forms, HalfWeightLinear, PlanesLinear
from local_backend.sampler import Sampled, accept, sample
from local_backend.scheduler import Chunk, Step
from local_backend.sequence import Sequence
from local_backend.weights import Weights


class Runner(Protocol):
    """What the engine asks of a runner; tests put a fake one here."""

    def run(self, step: Step) -> list[Sampled | None]:
        """Compute a step. Returns: one entry for each chunk in order, None where the chunk ends inside known tokens."""
        ...


class ModelRunner:
    """One model, or one rank's share of it, on one device, with its KV cache."""

    def __init__(self, model_dir: Path, settings: Settings, company: Company | None = None) -> None:
        """company: the other ranks, if the model is shared out."""
        self.company = company or Company()
        ranks = self.company.ranks
        self.config: ModelConfig = read_model_config(model_dir)
        kv_heads = ranks.share(self.config.kv_heads, "kv heads")
        self.device = pick_device(settings.device, ranks)
        if settings.threads is not None or ranks.size > 1:
            torch.set_num_threads(max(1, (settings.threads or torch.get_num_threads()) // ranks.size))
        self.dtype = pick_dtype(settings.dtype, self.device)
        half_weights = self.device.type == "cpu" and wants_half_weights(settings.dtype)
        self.ops = ops_for(
            self.device,
            self.dtype,
            # The data folder is the user's own: nobody else can put code there.
            cache_dir=Path(settings.data) / "kernels",
            fused=settings.kernels == "auto",
            invariant=settings.batch_invariant,
        )
        if settings.batch_invariant and not isinstance(self.ops, CpuOps):
            raise ModelUnavailable(
                "batch-invariant mode needs the fused CPU kernels: a C compiler, dtype auto or float32"
            )
        max_model_len = min(settings.max_model_len or self.config.max_position, self.config.max_position)
        weights = Weights(model_dir, self.device, self.config.text_prefix)
        forms = forms_for(
            self.device,
            self.dtype,
            self.ops,
            half_weights=half_weights,
            invariant=settings.batch_invariant,
            planes=wants_planes(settings.quantization, self.device, self.ops),
        )
        folders = adapter_folders(settings.adapters)
        if ranks.size > 1 and (folders or settings.batch_invariant):
            raise ModelUnavailable("tensor_parallel goes neither with adapters nor with batch_invariant yet")
        if folders and settings.batch_invariant:
            raise ModelUnavailable("adapters are not batch-invariant: their small products depend on the batch")
        if folders and self.config.vision is not None:
            raise ModelUnavailable("adapters correct models of text alone; this one takes images")
        with torch.inference_mode():
            self.adapters = Adapters(folders, self.dtype, self.device) if folders else None
            linears = Linears(
                weights,
                forms,
                dtype=self.dtype,
                scheme=pick_scheme(settings.quantization, self.device),
                widened=settings.quantization in ("none", "int16"),
                ranks=ranks,
                adapters=self.adapters,
            )
            self.model = build(self.config, linears, self.ops, max_model_len=max_model_len, device=self.device)
            weights.close()
            if self.adapters is not None:
                self.adapters.check()
            return_freed_memory()
            kv_dtype = pick_kv_dtype(settings.kv_dtype, self.dtype)
            plan = plan_cache(
                self.config,
                settings,
                kv_heads=kv_heads,
                itemsize=kv_dtype.itemsize,
                max_model_len=max_model_len,
                # Ranks on CPU share one memory.
                free_bytes=free_memory(self.device) // (ranks.size if self.device.type == "cpu" else 1)
                - (settings.image_bytes if self.config.vision is not None else 0),
                device=self.device.type,
            )
            self.plan: CachePlan = self.company.agree(plan)
            self.cache = KVCache(
                self.config.layers,
                self.plan.blocks,
                settings.block_size,
                kv_heads,
                self.config.head_dim,
                kv_dtype,
                self.device,
            )
            self.cache.add_host(self.plan.host_slots)
        self.device_name = str(self.device) if ranks.size == 1 else f"{self.device.type} x {ranks.size}"
        self.dtype_name = dtype_name(settings, weights.quantization, forms, self.dtype)

    def run(self, step: Step) -> list[Sampled | None]:
        """See Runner. One forward pass over all chunks, then sampling for those that reach their last token."""
        with torch.inference_mode():
            whole, owners = pass_of(step)
            logits = self.forward(whole, pictures_in(step))
            return sampled_from(logits, owners, step.chunks)

    def logits(self, step: Step) -> torch.Tensor:
        """Logits (chunks, vocab) of a step whose chunks all reach their last token; for parity checks."""
        with torch.inference_mode():
            whole, owners = pass_of(step)
            return self.forward(whole, pictures_in(step))[sorted(range(len(owners)), key=owners.__getitem__)]

    def all_logits(self, step: Step) -> torch.Tensor:
        """Logits (tokens, vocab) after each token of a step whose chunks are equally long; for perplexity."""
        with torch.inference_mode():
            return self.forward(pass_of(step, every=True)[0], pictures_in(step))

    def forward(self, whole: Pass, pictures: Mapping[int, Pictures] | None = None) -> torch.Tensor:
        """Logits (rows wanted, vocab). Every rank must make the same pass: the first one tells the others.

        pictures: of the spans that have some, by id."""
        self.company.tell(whole)
        self.cache.move(whole.moves)
        if self.adapters is not None:
            self.adapters.begin([(span.adapter, span.count) for span in whole.spans])
        batch = AttentionBatch(whole.spans, self.cache.block_size, self.device, self.dtype)
        seen: list[tuple[int, torch.Tensor]] = []
        if pictures:
            assert isinstance(self.model, SmolVlm)
            seen = self.model.look(whole.spans, pictures)
        return self.model(batch.inputs, batch.positions, self.cache, batch, batch.ints(whole.wanted), seen)


def pictures_in(step: Step) -> dict[int, Pictures]:
    """The images of a step's sequences, by id."""
    return {own.id: own for chunk in step.chunks if (own := chunk.seq.pictures) is not None}


def sampled_from(logits: torch.Tensor, owners: list[int], chunks: list[Chunk]) -> list[Sampled | None]:
    """What each chunk gives; `owners` are the chunks of the rows, those of one chunk side by side."""
    results: list[Sampled | None] = [None] * len(chunks)
    if not any(chunk.draft for chunk in chunks):
        for index, sampled in zip(owners, sample(logits, [chunks[index].seq for index in owners]), strict=True):
            results[index] = sampled
        return results
    rows: list[int] = []
    sequences: list[Sequence] = []
    found: dict[int, list[Sampled]] = {}
    nth = 0
    for row, index in enumerate(owners):
        seq, draft = chunks[index].seq, chunks[index].draft
        first = not row or owners[row - 1] != index
        nth = 0 if first else nth + 1
        if draft and seq.odds:
            if first:
                results[index] = accept(logits[row : row + len(draft) + 1], seq, draft)
            continue
        # A chunk with guesses has a row for each of them, and each row sees the guesses before it.
        rows.append(row)
        sequences.append(seq.ahead(list(draft[:nth])) if nth else seq)
    some = logits if len(rows) == len(logits) else logits[rows]
    for row, sampled in zip(rows, sample(some, sequences), strict=True):
        found.setdefault(owners[row], []).append(sampled)
    for index, several in found.items():
        results[index] = held(several, chunks[index].draft)
    return results


def held(found: list[Sampled], draft: tuple[int, ...]) -> Sampled:
    """The first token, and those after it as long as each guess was what came out."""
    kept = 1
    while kept < len(found) and found[kept - 1].token == draft[kept - 1] and found[kept].token is not None:
        kept += 1
    first, *more = found[:kept]
    return Sampled(first.token, first.logprobs, tuple(more))


def pick_device(wanted: str, ranks: Ranks = ALONE) -> torch.device:
    """Each rank takes a GPU of its own. Raises ModelUnavailable if CUDA is asked for and absent."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ModelUnavailable(f"device {wanted!r} was asked for, but torch sees no CUDA device")
    if ranks.size == 1 or wanted == "cpu":
        return torch.device(wanted)
    if wanted != "cuda" or torch.cuda.device_count() < ranks.size:
        raise ModelUnavailable(
            f"{ranks.size} ranks need as many GPUs, and device auto or cuda (CUDA_VISIBLE_DEVICES picks them)"
        )
    return torch.device("cuda", ranks.rank)


def wants_half_weights(dtype: str) -> bool:
    """True if a CPU model keeps float16 weights. Raises ModelUnavailable if they are asked for and cannot be had."""
    if dtype == "float16" and not HalfWeightLinear.available():
        raise ModelUnavailable("float16 weights on CPU need fbgemm, which this build of torch lacks; use float32")
    return dtype == "float16" or (dtype == "auto" and HalfWeightLinear.available())


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Dtype of activations and cache. On CPU float16 means float16 weights under float32 arithmetic."""
    if device.type == "cpu":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16}.get(wanted, torch.bfloat16)


def pick_scheme(wanted: str, device: torch.device) -> Scheme | None:
    """How to quantize while loading. Raises ModelUnavailable where the device cannot run it."""
    scheme = next((s for name, s in SCHEMES.items() if name == wanted), None)
    if scheme is SCHEMES["fp8"] and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ModelUnavailable("fp8 needs an Ada or Hopper GPU (compute capability 8.9); int8 runs on this one")
    return scheme


def pick_kv_dtype(wanted: str, activations: torch.dtype) -> torch.dtype:
    """In which numbers keys and values are kept."""
    named = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return torch.float32 if wanted == "float32" else named.get(wanted, activations)


def forms_for(
    device: torch.device,
    dtype: torch.dtype,
    ops: ReferenceOps,
    *,
    half_weights: bool = False,
    invariant: bool = False,
    planes: bool = False,
) -> Forms:
    """What runs matrices on the device."""
    if device.type == "cuda":
        from local_backend.quantization.run_cuda import CudaForms

        return CudaForms(dtype)
    return CpuForms(dtype, ops, half_weights=half_weights, invariant=invariant, planes=planes)


def wants_planes(wanted: str, device: torch.device, ops: ReferenceOps) -> bool:
    """True if weights of 16 bits are held as two of int8. Raises ModelUnavailable where that cannot be."""
    if wanted == "int16" and device.type == "cuda":
        raise ModelUnavailable("int16 is a form for CPUs; on a GPU none runs in bfloat16")
    if wanted == "int16" and not PlanesLinear.available(ops):
        raise ModelUnavailable(
            "int16 needs a processor with VNNI or AMX and the fused kernels (a C compiler); use none"
        )
    return wanted == "int16"


def dtype_name(settings: Settings, stored: str | None, forms: Forms, dtype: torch.dtype) -> str:
    """What the weights are, for `/health` and the log."""
    if settings.quantization not in ("auto", "none"):
        return f"{settings.quantization} weights"
    if stored is not None and settings.quantization == "auto":
        return f"{stored} weights"
    if isinstance(forms, CpuForms) and forms.half_weights:
        return "float16 weights"
    return str(dtype).removeprefix("torch.")


def free_memory(device: torch.device) -> int:
    """Bytes that may still be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_host_memory()
