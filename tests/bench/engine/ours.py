"""Worker: our scheduler, runner and sampler on one model, without the HTTP face. JSON lines in and out."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from local_backend.config import Settings
from local_backend.engine import Engine, build
from local_backend.messages import AddRequest, Configure, Sampling


def measure(engine: Engine, vocab: int, streams: int, prompt: int, tokens: int, seed: int) -> dict[str, Any]:
    """Put `streams` random prompts in at once. Returns: seconds to the last first token, and of each step after it."""
    chance = random.Random(seed)
    for i in range(streams):
        ids = [chance.randrange(300, vocab) for _ in range(prompt)]
        engine.take(AddRequest(i, ids, Sampling(max_tokens=tokens, temperature=0.0)))
    started: set[int] = set()
    gaps: list[float] = []
    begun, cpu = time.perf_counter(), time.process_time()
    first = first_cpu = 0.0
    while engine.scheduler.has_work:
        before = time.perf_counter()
        output = engine.step()
        now = time.perf_counter()
        if len(started) < streams:
            started |= {token.id for token in output.tokens}
            first, first_cpu = now - begun, time.process_time() - cpu
        elif len(output.tokens) == streams:
            gaps.append(now - before)
    per_step = (time.process_time() - cpu - first_cpu) / max(1, len(gaps))
    return {"first_s": first, "first_cpu_s": first_cpu, "gaps": gaps, "cpu_s": per_step}


def main() -> None:
    """argv: settings as JSON. Says `ready` with the seconds that loading took."""
    settings = Settings(**json.loads(sys.argv[1]))
    begun = time.perf_counter()
    engine, _ = build(Path(settings.model), Configure(settings, settings.model))
    vocab = json.loads((Path(settings.model) / "config.json").read_bytes())["vocab_size"]
    print(json.dumps({"ready_s": time.perf_counter() - begun}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(engine, vocab, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
