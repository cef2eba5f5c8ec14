"""Worker: vLLM's engine on one model folder, in an environment of its own: imports nothing of ours."""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

from vllm import EngineArgs, LLMEngine, SamplingParams  # type: ignore[import-not-found]  # see test_vllm.environment


def measure(engine: Any, vocab: int, streams: int, prompt: int, tokens: int, seed: int) -> dict[str, Any]:
    """See ours.measure."""
    chance = random.Random(seed)
    asked = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False)
    for i in range(streams):
        ids = [chance.randrange(300, vocab) for _ in range(prompt)]
        engine.add_request(str(i), {"prompt_token_ids": ids}, asked)
    started: set[str] = set()
    gaps: list[float] = []
    begun, cpu = time.perf_counter(), time.process_time()
    first = first_cpu = 0.0
    while engine.has_unfinished_requests():
        before = time.perf_counter()
        output = engine.step()
        now = time.perf_counter()
        if len(started) < streams:
            started |= {one.request_id for one in output}
            first, first_cpu = now - begun, time.process_time() - cpu
        elif len(output) == streams:
            gaps.append(now - before)
    per_step = (time.process_time() - cpu - first_cpu) / max(1, len(gaps))
    return {"first_s": first, "first_cpu_s": first_cpu, "gaps": gaps, "cpu_s": per_step}


def main() -> None:
    """argv: model folder, dtype, vocabulary, streams at most, context of each."""
    model, dtype = sys.argv[1:3]
    vocab, streams, context = map(int, sys.argv[3:6])
    begun = time.perf_counter()
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=model,
            dtype=dtype,
            skip_tokenizer_init=True,
            max_model_len=context,
            max_num_seqs=streams,
            enable_prefix_caching=False,
            distributed_executor_backend="uni",  # in this process, whose CPU time is counted
        )
    )
    print(json.dumps({"ready_s": time.perf_counter() - begun}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(engine, vocab, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
