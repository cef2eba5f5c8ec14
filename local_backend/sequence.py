"""The state of one sequence on its way through the engine; integers only."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Protocol

from local_backend.messages import Sampling
from local_backend.pictures import Pictures


class State(enum.Enum):
    """Where a sequence stands. Preempted ones are waiting again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Constraint(Protocol):
    """What restricts the next token of a sequence; see `grammar.py`. `restrict` is called by the sampler."""

    @property
    def error(self) -> str | None: ...

    @property
    def ended(self) -> bool: ...

    def begin(self) -> None: ...

    def restrict(self, row: Any) -> None: ...

    def accept(self, token: int) -> None: ...


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and output in one list: to the engine a token not computed yet is the same thing in both."""

    id: int
    tokens: list[int]
    sampling: Sampling
    salt: bytes = b""
    prompt_tokens: int = field(init=False)
    computed: int = 0  # tokens whose keys and values stand in the cache
    cached_tokens: int = 0  # of the prompt, how many the prefix cache spared us at first admission
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # chained hashes of full blocks, made as needed
    state: State = State.WAITING
    preemptions: int = 0
    constraint: Constraint | None = None
    tenant: str = ""
    priority: int = 0  # lower goes first
    deadline: float | None = None  # monotonic seconds
    draft: list[int] = field(default_factory=list)  # guesses at what follows `tokens`, for the next step alone
    odds: list[Any] = field(default_factory=list)  # what each guess was drawn from; none: guesses are certain
    adapter: str = ""  # with whose corrections the model works
    pictures: Pictures | None = None  # the images in its prompt
    rank: int = 0  # the scheduler's: place among those of one tenant
    length_max: int = 0  # the scheduler's: tokens at which it ends, prompt included

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)

    def ahead(self, guessed: list[int]) -> Sequence:
        """This sequence as it would be with some guesses in it: same blocks, same prompt; for the runner's eyes."""
        view = Sequence(self.id, self.tokens + guessed, self.sampling, adapter=self.adapter)
        view.prompt_tokens, view.block_table = self.prompt_tokens, self.block_table
        return view

    @property
    def uncomputed_tokens(self) -> int:
        """Known tokens that the model has not seen yet; at least one while the sequence lives."""
        return len(self.tokens) - self.computed

    @property
    def is_running(self) -> bool:
        """True while the sequence holds a place in the running list."""
        return self.state is State.RUNNING

    @property
    def output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_tokens

    def finish_reason(self) -> str | None:
        """`stop` after a stop token or a whole constrained answer, `length` at a bound, None while it should go on."""
        if self.tokens[-1] in self.sampling.stop_token_ids:
            return "stop"
        if self.constraint is not None and self.constraint.ended:
            return "stop"
        return "length" if len(self.tokens) >= self.length_max else None
