"""Worker: llama.cpp's server (xllamacpp) on one GGUF file, in a throw-away environment: imports nothing of ours."""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import time
from typing import Any

import xllamacpp  # type: ignore[import-not-found]  # installed by the bench, beside us


def measure(server: Any, vocab: int, streams: int, prompt: int, tokens: int, seed: int) -> dict[str, Any]:
    """See ours.measure; here a step is what lies between two tokens of the first stream."""
    chance = random.Random(seed)
    times: list[list[tuple[float, float]]] = [[] for _ in range(streams)]  # by the clock, and CPU of all threads

    def ask(index: int, ids: list[int]) -> None:
        body = {"prompt": ids, "n_predict": tokens, "ignore_eos": True, "temperature": 0.0, "cache_prompt": False}

        def on_chunk(chunk: Any) -> None:
            if chunk["choices"][0]["finish_reason"] is None:
                times[index].append((time.perf_counter(), time.process_time()))

        server.handle_completions(body | {"stream": True}, on_chunk)

    prompts = [[chance.randrange(300, vocab) for _ in range(prompt)] for _ in range(streams)]
    threads = [threading.Thread(target=ask, args=(i, ids)) for i, ids in enumerate(prompts)]
    begun, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = max(stream[0] for stream in times)
    together = min(stream[-1] for stream in times)
    seen = [t for t in times[0] if first <= t <= together]
    return {
        "first_s": first[0] - begun,
        "first_cpu_s": first[1] - cpu,
        "gaps": [b[0] - a[0] for a, b in itertools.pairwise(seen)],
        "cpu_s": (seen[-1][1] - seen[0][1]) / max(1, len(seen) - 1),
    }


def main() -> None:
    """argv: GGUF file, vocabulary, streams at most, context of each, threads."""
    path, vocab, streams, context, threads = sys.argv[1], *map(int, sys.argv[2:6])
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel = streams
    params.n_ctx = streams * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    begun = time.perf_counter()
    server = xllamacpp.Server(params)
    print(json.dumps({"ready_s": time.perf_counter() - begun}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(server, vocab, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
