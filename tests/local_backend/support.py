"""What the engine's tests share: tiny models made on the spot, the real one from its wheel, and engines to start."""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, SmolVLMConfig, SmolVLMForConditionalGeneration

from local_backend.block_manager import BlockManager
from local_backend.config import Settings
from local_backend.engine import Engine
from local_backend.grammar import Grammars
from local_backend.messages import AddRequest, Sampling
from local_backend.model_runner import ModelRunner
from local_backend.scheduler import Scheduler
from local_backend.tokenizer import byte_level_alphabet

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = "smollm2-135m-instruct"
START_WITHIN_S = 180
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cache_dir() -> Path:
    """Where fetched models stay between runs."""
    given = os.environ.get("FAREBOX_TEST_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "farebox-test"


MARKS = ["<image>", "<fake_token_around_image>", "<global-img>"]
MARKS += [f"<row_{row}_col_{col}>" for row in (1, 2, 3) for col in (1, 2, 3)]
# As SmolVLM's.
PARTS = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}:"
    "{% else %}: {% endif %}{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TINY: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    # Ten times transformers' default: logits far apart, so that greedy choices do not hang on rounding.
    "initializer_range": 0.2,
}


def make_tiny_model(folder: Path, *, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama with a byte tokenizer in `folder`. Returns: transformers' view of the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(**(TINY | changes)))
    model.train(False)
    model.save_pretrained(folder)
    make_byte_tokenizer(folder)
    return model


def make_tiny_vlm(folder: Path, *, seed: int = 0, **changes: Any) -> SmolVLMForConditionalGeneration:
    """A random SmolVLM with a byte tokenizer in `folder`: tiles of 32 pixels, 4 tokens each, at most 3 by 3 and the
    whole. Returns: transformers' view of the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    text: dict[str, Any] = TINY | {
        "model_type": "llama",
        "vocab_size": 259 + len(MARKS),
        "max_position_embeddings": 1024,
    }
    eyes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    whole = {"text_config": text, "vision_config": eyes, "scale_factor": 2, "image_token_id": 259}
    config = SmolVLMConfig(**(whole | changes))
    model: SmolVLMForConditionalGeneration = SmolVLMForConditionalGeneration(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or name.endswith(".bias"):
                tensor.normal_(0.5, 0.3)  # ones and zeros would hide a norm or a bias that is left out
    model.train(False)
    model.save_pretrained(folder)
    make_byte_tokenizer(folder, *MARKS)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}))
    processor = {"max_image_size": {"longest_edge": 32}, "size": {"longest_edge": 96}, "do_image_splitting": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise, so that no two filters agree on it."""
    chance = np.random.default_rng(seed)
    return Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8))


def data_uri(image: Image.Image, kind: str = "PNG", **how: Any) -> str:
    """The image as clients send it."""
    out = io.BytesIO()
    image.save(out, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def shown(image: Image.Image, **more: Any) -> dict[str, Any]:
    """A part of a chat turn."""
    return {"type": "image_url", "image_url": {"url": data_uri(image), **more}}


def make_byte_tokenizer(folder: Path, *more: str) -> None:
    """256 bytes between three special tokens and `more`."""
    alphabet = byte_level_alphabet()
    vocab = {token: i for i, token in enumerate(SPECIAL)} | {c: b + len(SPECIAL) for c, b in alphabet.items()}
    vocab |= {token: len(vocab) + i for i, token in enumerate(more)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*SPECIAL, *more)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))


def settings(**changes: Any) -> Settings:
    """Settings of an engine that runs inside a test."""
    values: dict[str, Any] = {"model": "-", "data": str(cache_dir()), "device": "cpu", "dtype": "float32"}
    return Settings(**(values | {"kv_cache_bytes": 64 * 2**20} | changes))


def make_engine(folder: Path, *, token_budget: int = 512, blocks: int | None = None, **changes: Any) -> Engine:
    """An engine with the real runner, without processes around it."""
    given = settings(**changes)
    runner = ModelRunner(folder, given)
    total = runner.plan.blocks if blocks is None else min(blocks, runner.plan.blocks)
    manager = BlockManager(
        total, given.block_size, prefix_caching=given.prefix_caching, host_slots=runner.plan.host_slots
    )
    return Engine(
        Scheduler(
            manager,
            token_budget=token_budget,
            max_running=given.max_running,
            max_waiting=given.max_waiting,
            max_model_len=min(runner.plan.max_model_len, total * given.block_size),
        ),
        runner,
        Grammars(folder, runner.config.eos_token_ids),
    )


def run_all(engine: Engine, prompts: list[list[int]], sampling: Sampling | list[Sampling]) -> list[list[int]]:
    """Put all prompts in at once and step until nothing is left. Returns: their output tokens."""
    for i, prompt in enumerate(prompts):
        engine.take(AddRequest(i, prompt, sampling[i] if isinstance(sampling, list) else sampling))
    outputs = run_out(engine)
    return [outputs.get(i, []) for i in range(len(prompts))]


def run_out(engine: Engine) -> dict[int, list[int]]:
    """Step until nothing is left. Returns: output tokens of each sequence."""
    outputs: dict[int, list[int]] = {}
    for _ in range(100_000):
        if not engine.has_work:
            break
        output = engine.step()
        assert not output.failed
        for token in output.tokens:
            outputs.setdefault(token.id, []).append(token.token)
    assert not engine.has_work
    engine.scheduler.blocks.check([])
    return outputs


def greedy(max_tokens: int, **changes: Any) -> Sampling:
    """Always the likeliest token."""
    return Sampling(max_tokens=max_tokens, temperature=0.0, **changes)


class EngineProcess:
    """`python -m local_backend` as a user starts it; its JSON lines are read as they come."""

    def __init__(self, *argv: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "local_backend", *argv],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.errors: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._read_errors, daemon=True).start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def wait_for(self, event: str, within_s: float = START_WITHIN_S) -> dict[str, Any]:
        """The next line with this event. Fails with what the engine said if it ends before."""
        while (line := self._lines.get(timeout=within_s)) is not None:
            value: dict[str, Any] = json.loads(line)
            if value["event"] == event:
                return value
        raise AssertionError(f"the engine ended with {self.process.wait()}: {''.join(self.errors)}")

    def start(self, within_s: float = START_WITHIN_S) -> EngineProcess:
        """Wait until it takes requests."""
        self.url = self.wait_for("listening", within_s)["url"]
        self.wait_for("ready", within_s)
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Returns: exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextmanager
def running_engine(model: str | Path, *argv: str, env: dict[str, str] | None = None) -> Iterator[EngineProcess]:
    """An engine on a free port for the length of a block, then gone whatever happened."""
    engine = EngineProcess(str(model), "--port", "0", "--die-with-parent", *argv, env=env)
    try:
        yield engine.start()
    finally:
        if engine.process.poll() is None:
            engine.process.kill()
        engine.process.wait()


def wait_until(true: Callable[[], bool], within_s: float = 30.0) -> None:
    """Fails if it does not come true."""
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process. Source: proc(5)."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """False for one that is gone or only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
