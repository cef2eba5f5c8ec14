"""The core: take what the front sent, plan a step, run it, deliver. A process of its own, without HTTP or text.

Run as `python -m local_backend.engine` by `client.py`: frames come in on stdin and go out on stdout. When stdin ends
the front is gone, and so are we.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import BinaryIO

from local_backend.block_manager import BlockManager
from local_backend.draft import RoomForDraft, build_draft
from local_backend.encoder import EncoderEngine, build_encoder
from local_backend.encoder_config import is_encoder
from local_backend.errors import (
    BadLogits,
    ConstraintFailed,
    DeadlineExceeded,
    EngineError,
    ModelUnavailable,
    QueueFull,
)
from local_backend.grammar import Constraint, Grammars
from local_backend.messages import (
    Abort,
    AddImages,
    AddRequest,
    Configure,
    Failed,
    Fatal,
    KVEvent,
    Ready,
    Sampling,
    Stats,
    StepOutput,
    ToCore,
    TokenOut,
    decode_to_core,
    read_frame,
    send,
)
from local_backend.model_runner import ModelRunner, Runner
from local_backend.parent import quiet_child
from local_backend.pictures import Pictures
from local_backend.rank import lead
from local_backend.sampler import Sampled
from local_backend.scheduler import Chunk, Scheduler, Step
from local_backend.sequence import Sequence
from local_backend.speculative import Lookups, Speculation

Clock = Callable[[], float]
DEFAULT_TOKEN_BUDGET = {"cpu": 512, "cuda": 4096}  # a step on two cores should not hold others up for over a second
DEFAULT_PROMPT_TOKENS = {"cpu": 16, "cuda": None}  # a step then takes three to four times as long (2026-11)
ROWS_AT_A_TIME = {"cpu": 16, "cuda": 1}  # of products.c; CUDA has no bound on prompts that it would round
SPECULATE_UP_TO = {"cpu": 4, "cuda": 16}  # sequences; with more the device is busy, and a wrong guess costs the others


class Engine:
    """One scheduler, one runner, and the sequences between them."""

    def __init__(
        self, scheduler: Scheduler, runner: Runner, grammars: Grammars | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.grammars = grammars
        self.clock = clock
        self.speculation: Speculation | None = None
        self.steps = 0
        self._compiling: dict[int, tuple[Sequence, Future[Constraint]]] = {}
        self._pictures: dict[int, tuple[Pictures, int]] = {}  # and how many of their sequences are still to come
        self._refused: list[Failed] = []
        self._unsaid = False  # the figures changed without a step

    @property
    def has_work(self) -> bool:
        """True if a step would do or say something."""
        return self.scheduler.has_work or self._unsaid or bool(self._compiling)

    def take(self, message: AddImages | AddRequest | Abort) -> None:
        """Book one message. A refusal goes out with the next step."""
        if isinstance(message, AddImages):
            self._pictures[message.id] = (Pictures.of(message), message.sequences)
            return
        if isinstance(message, Abort):
            compiling = self._compiling.pop(message.id, None)
            self._unsaid |= self.scheduler.abort(message.id) or compiling is not None
            return
        terms = message.terms
        seq = Sequence(
            message.id,
            list(message.prompt),
            message.sampling,
            # The same tokens have other keys and values under an adapter.
            (f"{terms.adapter}\0{message.cache_salt}" if terms.adapter else message.cache_salt).encode(),
            tenant=terms.tenant,
            priority=terms.priority,
            deadline=None if terms.timeout_s is None else self.clock() + terms.timeout_s,
            adapter=terms.adapter,
            pictures=self._shown(message.images),
        )
        if terms.grammar is None:
            self._add(seq)
        else:
            assert self.grammars is not None
            self._compiling[seq.id] = (seq, self.grammars.compile(terms.grammar))

    def _shown(self, id_: int) -> Pictures | None:
        """The images of a request; its last sequence takes them from here, and they live as long as one of these."""
        if not id_:
            return None
        pictures, sequences = self._pictures.pop(id_)
        if sequences > 1:
            self._pictures[id_] = (pictures, sequences - 1)
        return pictures

    def _add(self, seq: Sequence) -> None:
        try:
            self.scheduler.add(seq)
        except QueueFull as error:
            self._refused.append(Failed(seq.id, error.code, error.message))
            self._unsaid = True

    def _add_compiled(self) -> None:
        """Queue the sequences whose grammar is ready. Waits for one if there is nothing else to do."""
        if self._compiling and not self.scheduler.has_work and not self._unsaid:
            wait([future for _, future in self._compiling.values()], return_when=FIRST_COMPLETED)
        for id_, (seq, future) in list(self._compiling.items()):
            if future.done():
                del self._compiling[id_]
                seq.constraint = future.result()
                self._add(seq)

    def _end_late_ones(self) -> None:
        """Whoever waits or runs beyond its deadline gives its place to others: nobody listens any more."""
        now = self.clock()
        for seq in [s for s in self.scheduler.sequences if s.deadline is not None and s.deadline <= now]:
            self.scheduler.finish(seq)
            said = f"not done in time, after {seq.output_tokens} tokens"
            self._refused.append(Failed(seq.id, DeadlineExceeded.code, said))

    def step(self) -> StepOutput:
        """Plan, run and book one step."""
        self._add_compiled()
        self._end_late_ones()
        if self.speculation is not None:
            self.speculation.propose(self.scheduler.running, self.scheduler.max_model_len)
        step = self.scheduler.plan()
        failed, self._refused, self._unsaid = self._refused, [], False
        tokens: list[TokenOut] = []
        if step.chunks:
            for chunk in step.chunks:
                if chunk.seq.constraint is not None and chunk.samples:
                    chunk.seq.constraint.begin()
            commit = self.scheduler.commit
            for chunk, sampled in zip(step.chunks, self.runner.run(step), strict=True):
                if sampled is None:
                    commit(chunk, None)
                    continue
                seq, token = chunk.seq, sampled.token
                if token is None or (seq.constraint is not None and breaks(seq, token)):
                    failed.append(self._spoilt(seq))
                    continue
                finish = commit(chunk, token)
                tokens.append(TokenOut(seq.id, token, finish, seq.cached_tokens, sampled.logprobs))
                if chunk.draft:
                    tokens += self._commit_guessed(chunk, sampled, finish)
            self.steps += 1
        return StepOutput(tokens, failed, self.stats(), self._changed_blocks())

    def _spoilt(self, seq: Sequence) -> Failed:
        """End a sequence that has no next token: its logits were no numbers, or its constraint broke on them."""
        if seq.constraint is not None and seq.constraint.error is not None:
            self.scheduler.finish(seq)
            return Failed(seq.id, ConstraintFailed.code, seq.constraint.error[:500])
        self.scheduler.blocks.forget(seq)
        self.scheduler.finish(seq)
        return Failed(seq.id, BadLogits.code, "the model produced numbers that are none")

    def _commit_guessed(self, chunk: Chunk, sampled: Sampled, finish: str | None) -> list[TokenOut]:
        """Book the guesses that held, each as if a step of its own had sampled it, until one ends the sequence."""
        assert self.speculation is not None
        seq, out = chunk.seq, list[TokenOut]()
        self.speculation.learn(seq, len(chunk.draft), len(sampled.more))
        for more in sampled.more:
            if finish is not None or more.token is None:
                break
            finish = self.scheduler.commit(Chunk(seq, chunk.start, len(seq.tokens) - chunk.start), more.token)
            out.append(TokenOut(seq.id, more.token, finish, seq.cached_tokens, more.logprobs))
        return out

    def _changed_blocks(self) -> list[KVEvent]:
        blocks = self.scheduler.blocks
        if blocks.events is None:
            return []
        events, blocks.events = blocks.events, []
        return events

    def stats(self) -> Stats:
        """Figures for metrics and routing."""
        s, b = self.scheduler, self.scheduler.blocks
        return Stats(
            running=len(s.running),
            waiting=len(s.waiting),
            free_blocks=b.free_blocks,
            total_blocks=b.total_blocks,
            preemptions=s.preemptions,
            prefix_query_tokens=b.query_tokens,
            prefix_hit_tokens=b.hit_tokens,
            steps=self.steps,
            queued_tokens=s.queued_tokens,
            guessed=self.speculation.proposed if self.speculation else 0,
            guessed_right=self.speculation.accepted if self.speculation else 0,
        )


def breaks(seq: Sequence, token: int) -> bool:
    """Move a sequence's constraint on by the token chosen under it. True: that broke it, and its error says why."""
    assert seq.constraint is not None
    seq.constraint.accept(token)
    return seq.constraint.error is not None


def build(model_dir: Path, configure: Configure) -> tuple[Engine | EncoderEngine, Ready]:
    """Load the model and run one step, so that the first client does not pay for first-call costs.

    Raises ModelUnavailable."""
    settings, started = configure.settings, time.monotonic()
    if is_encoder(model_dir):
        if settings.adapters:
            raise ModelUnavailable("adapters correct models that generate text; this one is an encoder")
        if settings.tensor_parallel > 1:
            raise ModelUnavailable("an encoder is small enough for one process: tensor_parallel is for decoders")
        return build_encoder(model_dir, settings, started)
    company = lead(model_dir, settings)
    if settings.draft_model is not None:
        company = RoomForDraft(company, model_dir, settings)
    runner = ModelRunner(model_dir, settings, company)
    plan = runner.plan
    scheduler = Scheduler(
        BlockManager(
            plan.blocks, settings.block_size, prefix_caching=settings.prefix_caching, host_slots=plan.host_slots
        ),
        token_budget=settings.token_budget or DEFAULT_TOKEN_BUDGET[runner.device.type],
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        max_model_len=plan.max_model_len,
        prompt_tokens=settings.prompt_tokens or DEFAULT_PROMPT_TOKENS[runner.device.type],
        rows_at_a_time=ROWS_AT_A_TIME[runner.device.type],
    )
    if settings.kv_events is not None:
        scheduler.blocks.events = []
    warm_up(runner, scheduler)
    engine = Engine(scheduler, runner, Grammars(model_dir, runner.config.eos_token_ids))
    if settings.speculation != "off":
        engine.speculation = Speculation(
            Lookups() if settings.speculation == "ngram" else build_draft(runner, settings, scheduler.blocks),
            most=settings.draft_tokens,
            max_batch=SPECULATE_UP_TO[runner.device.type],
        )
    ready = Ready(
        max_model_len=plan.max_model_len,
        total_blocks=plan.blocks,
        block_size=settings.block_size,
        device=runner.device_name,
        dtype=runner.dtype_name,
        load_seconds=time.monotonic() - started,
    )
    return engine, ready


def warm_up(runner: Runner, scheduler: Scheduler) -> None:
    """One small prefill through block tables that belong to nobody yet; what it writes is never read."""
    seq = Sequence(-1, [0] * min(8, scheduler.max_model_len - 1), Sampling(max_tokens=1))
    assert scheduler.blocks.grow(seq, len(seq.tokens))
    step = Step(len(seq.tokens))
    step.add(seq, len(seq.tokens))
    runner.run(step)
    scheduler.blocks.release(seq)


def read_frames(source: BinaryIO, inbox: queue.SimpleQueue[ToCore]) -> None:
    """Thread: stdin into the inbox. At its end the process ends, in the middle of a step if need be."""
    while (body := read_frame(source)) is not None:
        inbox.put(decode_to_core(body))
    os._exit(0)


def main() -> int:
    """Serve frames on stdin and stdout until stdin ends."""
    out = quiet_child()
    inbox: queue.SimpleQueue[ToCore] = queue.SimpleQueue()
    threading.Thread(target=read_frames, args=(sys.stdin.buffer, inbox), daemon=True).start()
    configure = inbox.get()
    assert isinstance(configure, Configure)
    try:
        engine, ready = build(Path(configure.model_dir), configure)
    except EngineError as error:
        send(out, Fatal(error.code, error.message))
        return 2
    send(out, ready)
    while True:
        while not engine.has_work or not inbox.empty():
            message = inbox.get()
            assert not isinstance(message, Configure)
            engine.take(message)
        output = engine.step()
        send(out, output)


if __name__ == "__main__":
    sys.exit(main())
