"""The seam between front and core: every message that crosses it, and how one is framed.

The front sends `Configure` once, then `AddRequest` (images go before it, as `AddImages`) and `Abort`; the core answers
with `Ready` once and one `StepOutput` for each step. A frame is a 4-byte little-endian length and that many bytes of
msgpack.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import msgspec
from msgspec import Struct

from local_backend.config import Settings

FRAME_HEAD = struct.Struct("<I")


class Sampling(Struct, frozen=True, array_like=True):
    """How the next token is chosen. Defaults are the neutral ones: they change nothing."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    logprobs: int | None = None  # how many alternatives beside the chosen token; None: no logprobs at all
    min_tokens: int = 0  # no stop token before so many
    repeatable: bool = False  # the client gave the seed: the same one gives the same tokens, however busy we are
    stop_token_ids: tuple[int, ...] = ()  # end-of-sequence ids are among them unless the client ignores them

    @property
    def edits_logits(self) -> bool:
        """True if some logit is changed before temperature; such rows take the slower way."""
        return bool(
            self.logit_bias
            or self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.min_tokens
        )


class Terms(Struct, frozen=True, array_like=True):
    """What the scheduler and the sampler must know of a request besides its prompt and sampling."""

    grammar: str | None = None  # llguidance's form; the front has found it to be sound
    tenant: str = ""  # whose share of the engine this uses
    priority: int = 0  # lower goes first, as in vLLM
    timeout_s: float | None = None  # from its arrival in the core until its last token
    adapter: str = ""  # with whose corrections the model works; "": none


class TokenLogprobs(Struct, frozen=True, array_like=True, gc=False):
    """Log-probabilities under the model as it is: before penalties, bias and temperature."""

    chosen: float
    top_ids: list[int]
    top_logprobs: list[float]


class Configure(Struct, frozen=True, array_like=True, tag=True):
    """First message to the core: what to load and how."""

    settings: Settings
    model_dir: str


class Images(Struct, frozen=True, array_like=True):
    """Tiles of a prompt's images, in its order."""

    starts: list[int]  # position of each tile's first token
    tile_tokens: int  # tokens of a tile, side by side
    digests: list[bytes]  # of each tile's image; prompts share cached blocks only where these are the same
    tiles: list[bytes]  # pixels (3, size, size), a byte each


class AddImages(Struct, frozen=True, array_like=True, tag=True):
    """Images that the next `sequences` requests share; they come right behind it."""

    id: int
    sequences: int
    images: Images


class AddRequest(Struct, frozen=True, array_like=True, tag=True):
    """One sequence to continue. A request for n answers is n of these."""

    id: int
    prompt: list[int]
    sampling: Sampling
    cache_salt: str = ""  # prompts share cached blocks only under the same salt
    terms: Terms = Terms()
    images: int = 0  # the id of an AddImages; 0: none


class Abort(Struct, frozen=True, array_like=True, tag=True):
    """The client is gone, or the front found a stop string: free what the sequence holds."""

    id: int


class TokenOut(Struct, frozen=True, array_like=True, gc=False):
    """One new token of one sequence. `finish` is None while it goes on, then `stop` or `length`."""

    id: int
    token: int
    finish: str | None
    cached_tokens: int  # prompt tokens that came from the prefix cache
    logprobs: TokenLogprobs | None


class Vector(Struct, frozen=True, array_like=True):
    """What an encoder made of one sequence: float32 values, little-endian."""

    id: int
    values: bytes


class Failed(Struct, frozen=True, array_like=True):
    """One sequence ended without an answer; its blocks are free. `code` names an EngineError kind."""

    id: int
    code: str
    message: str


class Stats(Struct, frozen=True, array_like=True):
    """The core's state after a step; counters run since its start."""

    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    preemptions: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    steps: int
    queued_tokens: int
    """Of prompts, that are still to be computed: whoever scales engines goes by it."""
    guessed: int = 0
    guessed_right: int = 0


class Ready(Struct, frozen=True, array_like=True, tag=True):
    """The model is loaded and one step has run."""

    max_model_len: int
    total_blocks: int
    block_size: int
    device: str
    dtype: str
    load_seconds: float


class Fatal(Struct, frozen=True, array_like=True, tag=True):
    """The core cannot start; trying again with the same settings will not help."""

    code: str
    message: str


class BlockStored(Struct, frozen=True, array_like=True, tag=True, omit_defaults=True):
    """Blocks that can be shared from now on. This and the next two are on the wire as vLLM has them."""

    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None


class BlockRemoved(Struct, frozen=True, array_like=True, tag=True, omit_defaults=True):
    """Blocks whose content is about to be overwritten."""

    block_hashes: list[bytes]


class AllBlocksCleared(Struct, frozen=True, array_like=True, tag=True, omit_defaults=True):
    """Nothing is cached any more."""


KVEvent = BlockStored | BlockRemoved | AllBlocksCleared


class StepOutput(Struct, frozen=True, array_like=True, tag=True):
    """Everything one step produced, for all sequences at once."""

    tokens: list[TokenOut]
    failed: list[Failed]
    stats: Stats
    kv_events: list[KVEvent] = []
    vectors: list[Vector] = []


ToCore = Configure | AddImages | AddRequest | Abort
FromCore = Ready | Fatal | StepOutput

_encoder = msgspec.msgpack.Encoder()
decode_to_core = msgspec.msgpack.Decoder(ToCore).decode
decode_from_core = msgspec.msgpack.Decoder(FromCore).decode


def frame(message: Struct) -> bytes:
    """One message with its length in front, ready to be written."""
    body = _encoder.encode(message)
    return FRAME_HEAD.pack(len(body)) + body


def send(out: BinaryIO, message: Struct) -> None:
    """Write one frame whole; a pipe may take it in pieces."""
    data = memoryview(frame(message))
    while data:
        data = data[out.write(data) :]


def read_frame(source: BinaryIO) -> bytes | None:
    """The next message as it was framed; None at the end, also of one cut short."""
    head = source.read(FRAME_HEAD.size)
    if len(head) < FRAME_HEAD.size:
        return None
    size = FRAME_HEAD.unpack(head)[0]
    body = source.read(size)
    return body if len(body) == size else None
