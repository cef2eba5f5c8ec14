"""The engine's speed beside llama.cpp's, and vLLM's if asked for, same random weights, in one run, taking turns.

    python -m tests.bench.engine --json [--quick] [--keep FOLDER]    one line of figures and ratios
    python -m tests.bench.engine --json --vllm PYTHON                beside vLLM for CPUs, too, in its environment
    python -m tests.bench.engine --accuracy SMOLLM2_FOLDER           perplexity and greedy agreement of each scheme
    python -m tests.bench.engine --guessing SMOLLM2_FOLDER           what speculation wins
    python -m tests.bench.engine --service [--quick]                 start, prefix cache, 200 clients, overhead
    python -m tests.bench.engine --soak MINUTES                      mixed traffic; memory, failures, blocks
    python -m tests.bench.engine --gpu [--dry-run]                   decode as a share of the ceilings of this GPU

Other programs on the machine cost both sides; llama.cpp's threads spin while they wait and lose most by them. So each
figure is given as median step, as best step, and (`_cpu`) by second of CPU time, which with `--threads 1` is what a
machine of one's own would show even on a busy one; and nothing is compared across runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.engine import model
from tests.bench.engine.peers import Peer, PeerFailed, Work, llamacpp, llamacpp_environment, ours, vllm

WORK = {"decode_1": Work(1, 128, 33), "decode_16": Work(16, 64, 33), "prefill": Work(1, 512, 3)}
QUICK = {"decode_1": Work(1, 32, 9), "decode_16": Work(16, 16, 9), "prefill": Work(1, 128, 3)}
CONTEXT = 640
SCHEMES = {"ours_fp16": "none", "ours_int16": "int16", "ours_int8": "int8", "ours_int4wo": "int4wo"}
AGAINST = dict.fromkeys(SCHEMES, "llamacpp_q8_0") | {"ours_int4wo": "llamacpp_q4_0"}
VLLM = {"vllm_bf16": "bfloat16", "vllm_fp32": "float32"}


def main() -> int:
    """Exit status 0: figures were printed."""
    parser = argparse.ArgumentParser(prog="tests.bench.engine", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="short prompts and answers, one round")
    parser.add_argument("--rounds", type=int, help="how often all peers take their turn (default 3, quick 1)")
    parser.add_argument("--threads", type=int, help="of each engine (default 2)")
    parser.add_argument("--only", metavar="NAMES", help="these engines alone: llamacpp_q8_0,ours_int8")
    parser.add_argument("--keep", type=Path, help="folder for weights and the other engine's environment")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="an interpreter with vLLM for CPUs: beside it, too")
    parser.add_argument("--tiny", action="store_true", help="a toy model, to see that everything runs")
    parser.add_argument("--no-peers", action="store_true", help="our engine alone; nothing is fetched")
    parser.add_argument("--accuracy", type=Path, metavar="MODEL", help="accuracy table of a model folder")
    parser.add_argument("--guessing", type=Path, metavar="MODEL", help="what speculation wins with a model folder")
    parser.add_argument("--service", action="store_true", help="the engine as clients see it")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mixed traffic for so long")
    parser.add_argument("--gpu", action="store_true", help="the table for a CUDA device")
    parser.add_argument("--dry-run", action="store_true", help="with --gpu: the same code on a toy model on CPU")
    args = parser.parse_args()
    if args.gpu:
        from tests.bench.engine.gpu import run

        return run(dry=args.dry_run)
    if args.accuracy or args.guessing:
        # Before torch is there: threads that spin while they wait take ten times as long on a machine that others use.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from tests.bench.engine import accuracy, guessing

        rows = accuracy.table(args.accuracy) if args.accuracy else guessing.table(args.guessing)
        print(json.dumps(rows) if args.json else as_table(rows))
        return 0
    if args.service or args.soak:
        from tests.bench.engine import service

        told = service.soak(args.soak, lambda line: print(line, file=sys.stderr)) if args.soak else None
        print(json.dumps(told or service.figures(quick=args.quick)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        figures = compare(args, args.keep or Path(temporary))
    print(json.dumps(figures) if args.json else as_table(figures["engines"]) + "\n" + as_table(figures["ratios"]))
    return 0


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Load all peers, let them take turns, and put their figures beside each other."""
    shape = model.TINY if args.tiny else model.L491M
    work = QUICK if args.quick else WORK
    threads = args.threads or min(2, os.cpu_count() or 1)
    folder.mkdir(parents=True, exist_ok=True)
    only = set(args.only.split(",") if args.only else ())
    peers = load(folder, shape, threads, alone=args.no_peers, only=only, vllm_python=args.vllm)
    seen: dict[str, dict[str, list[dict[str, Any]]]] = {peer.name: {} for peer in peers}
    try:
        for turn in range(args.rounds or (1 if args.quick else 3)):
            for name, asked in work.items():
                for peer in peers:
                    one = Work(asked.streams, asked.prompt, asked.tokens, seed=turn)
                    seen[peer.name].setdefault(name, []).append(peer.measure(one))
    finally:
        for peer in peers:
            peer.close()
    engines = {peer.name: {"ready_s": round(peer.ready_s, 2)} | summary(seen[peer.name], work) for peer in peers}
    return {"model": shape.name, "threads": threads, "engines": engines, "ratios": ratios(engines)}


def load(
    folder: Path, shape: model.Shape, threads: int, *, alone: bool, only: set[str], vllm_python: Path | None = None
) -> list[Peer]:
    """Write the weights in each format, unless they are there, and start the workers one after the other."""
    files = {kind: folder / f"{shape.name}-{kind}.gguf" for kind in ("Q8_0", "Q4_0")}
    plain = folder / shape.name
    missing = [kind for kind, path in files.items() if not alone and not path.exists()]
    if missing or not (plain / "config.json").exists():
        weights = model.tensors(shape)
        model.write_safetensors(plain, shape, weights)
        for kind in missing:
            model.write_gguf(files[kind], shape, weights, kind)
    peers = []
    if not alone:
        python = llamacpp_environment(folder / "llamacpp")
        for kind, path in files.items():
            name = f"llamacpp_{kind.lower()}"
            if only and name not in only:
                continue
            peers.append(llamacpp(name, python, path, folder, shape.vocab, 16, CONTEXT, threads))
    longest = min(CONTEXT, shape.context)
    if vllm_python is None:
        print("NOT BESIDE VLLM: --vllm PYTHON says where it is (tests/e2e/test_vllm.py makes one)", file=sys.stderr)
    for name, dtype in VLLM.items():
        if vllm_python is not None and (not only or name in only):
            peers.append(vllm(name, vllm_python, plain, folder, dtype, shape.vocab, 16, longest, threads))
    for name, quantization in SCHEMES.items():
        if only and name not in only:
            continue
        if quantization == "int16" and not runs_int16():
            print("NO VNNI HERE: int16 is left out", file=sys.stderr)
            continue
        peers.append(ours(name, plain, folder, threads, quantization=quantization, max_model_len=longest))
    return peers


def runs_int16() -> bool:
    """True on a processor with units for 8-bit products."""
    import torch

    return bool(torch.cpu._is_vnni_supported())


def summary(seen: dict[str, list[dict[str, Any]]], work: dict[str, Work]) -> dict[str, float]:
    """Tokens a second: of decode by its median and its best step, of prefill by its best time; and by CPU second."""
    out: dict[str, float] = {}
    for name, asked in work.items():
        if name == "prefill":
            out[name] = round(asked.prompt / min(one["first_s"] for one in seen[name]), 1)
            out[f"{name}_cpu"] = round(asked.prompt / min(one["first_cpu_s"] for one in seen[name]), 1)
            continue
        gaps = [gap for one in seen[name] for gap in one["gaps"]]
        out[name] = round(asked.streams / statistics.median(gaps), 1)
        out[f"{name}_best"] = round(asked.streams / min(gaps), 1)
        out[f"{name}_cpu"] = round(asked.streams / min(one["cpu_s"] for one in seen[name]), 1)
    return out


def ratios(engines: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Ours over llama.cpp's at like bytes, and over vLLM's."""
    out: dict[str, dict[str, float]] = {}
    for name, peer in [*AGAINST.items(), *((name, peer) for name in SCHEMES for peer in VLLM)]:
        if peer in engines and name in engines:
            pairs = {key: (engines[name][key], engines[peer][key]) for key in engines[name] if key != "ready_s"}
            out[f"{name} / {peer}"] = {key: round(mine / other, 2) for key, (mine, other) in pairs.items()}
    return out


def as_table(rows: dict[str, dict[str, Any]]) -> str:
    """Rows with the same columns, for people."""
    if not rows:
        return ""
    columns = list(next(iter(rows.values())))
    wide = max(map(len, rows)) + 2
    lines = [" " * wide + "".join(f"{column:>18}" for column in columns)]
    lines += [f"{name:<{wide}}" + "".join(f"{row[column]!s:>18}" for column in columns) for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PeerFailed as failure:
        print(failure, file=sys.stderr)
        sys.exit(1)
