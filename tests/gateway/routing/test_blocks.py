"""The index of engines' blocks against a real block manager and a real publisher: it knows what the engine holds."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing.block_news import Subscription
from gateway.routing.blocks import Blocks, Prompt
from local_backend.kv_events import Publisher
from local_backend.messages import AddRequest, AllBlocksCleared, BlockRemoved, BlockStored, KVEvent
from local_backend.sequence import Sequence as EngineSequence
from tests.local_backend.test_scheduler import MAX_LEN, make, prompts, samplings

WITHIN_S = 30


def on_the_wire(events: Sequence[KVEvent]) -> list[Any]:
    decoded: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(list(events)))
    return decoded


class AsVLLM:
    """The same events with hashes that tell nothing, as an engine without salts sends them."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}

    def __call__(self, events: list[Any]) -> list[Any]:
        said = []
        for event in events:
            match event:
                case ["BlockStored", hashes, parent, tokens, size, *rest]:
                    parent = None if parent is None else self.number(parent)
                    said.append(["BlockStored", [self.number(h) for h in hashes], parent, tokens, size, *rest, "GPU"])
                case ["BlockRemoved", hashes]:
                    said.append(["BlockRemoved", [self.number(h) for h in hashes], "GPU"])
        return said

    def number(self, hash_: bytes) -> int:
        return self.numbers.setdefault(hash_, len(self.numbers))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(prompts, samplings, st.sampled_from(["", "a", "b"])), min_size=1, max_size=12),
    st.lists(st.tuples(prompts, st.sampled_from(["", "a", "b"])), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 6),
    st.booleans(),
)
def test_it_knows_to_the_token_what_the_engine_would_find(
    requests: list[Any], asked: list[Any], block_size: int, spare: int, salted: bool
) -> None:
    engine = make(-(-MAX_LEN // block_size) + spare, block_size, 16, 3)
    manager = engine.scheduler.blocks
    manager.events = []
    blocks, told = Blocks(salted), on_the_wire if salted else AsVLLM()
    for number, (prompt, sampling, salt) in enumerate(requests):
        engine.take(AddRequest(number, prompt, sampling, salt if salted else ""))
    while engine.has_work:
        events = on_the_wire(engine.step().kv_events)
        blocks.apply(events if salted else told(events))  # type: ignore[arg-type]
    assert len(blocks) == len(manager.cache)
    for prompt, salt in [*asked, *((prompt, salt) for prompt, _, salt in requests)]:
        sequence = EngineSequence(0, list(prompt), requests[0][1], salt=(salt if salted else "").encode())
        manager.match(sequence)
        found = sequence.computed
        manager.release(sequence)
        assert blocks.held_tokens(Prompt(prompt, salt)) == (found if blocks.size else 0)


def test_events_that_name_their_fields_say_the_same() -> None:
    """As vLLM 0.32 sends them; older ones, SGLang and ours send arrays."""
    blocks = Blocks(salted=False)
    stored = {"type": "BlockStored", "block_hashes": [1, 2], "token_ids": [1, 2, 3, 4], "block_size": 2}
    blocks.apply([{**stored, "parent_block_hash": None, "lora_id": None, "medium": "CPU"}])
    blocks.apply([{**stored, "block_hashes": [3], "parent_block_hash": 2, "token_ids": [5, 6]}, {"type": "New"}])
    assert blocks.held_tokens(Prompt([1, 2, 3, 4, 5, 6, 7], "")) == 6
    blocks.apply([{"type": "BlockRemoved", "block_hashes": [3], "medium": "CPU"}])
    assert blocks.held_tokens(Prompt([1, 2, 3, 4, 5, 6, 7], "")) == 4
    blocks.apply([{"type": "AllBlocksCleared"}])
    assert len(blocks) == 0


def test_what_is_not_known_is_not_claimed() -> None:
    blocks = Blocks(salted=False)
    assert blocks.held_tokens(Prompt([1, 2, 3], "")) == 0
    blocks.apply([["BlockStored", [2], 1, [3, 4], 2, None]])
    assert len(blocks) == 0, "its parent was told before we listened"
    blocks.apply([["BlockStored", [1, 2], None, [1, 2, 3, 4], 2, None], ["SomethingNew", 7], ["BlockRemoved", [99]]])
    assert blocks.held_tokens(Prompt([1, 2, 3, 4, 5], "")) == 4
    assert blocks.held_tokens(Prompt([1, 2, 3, 4], "")) == 2, "the last token is computed anew"
    assert blocks.held_tokens(Prompt([1, 2, 9, 4, 5], "any tenant")) == 2
    # Two blocks of the same content: one may go.
    blocks.apply([["BlockStored", [7], None, [1, 2], 2, None], ["BlockRemoved", [1]]])
    assert blocks.held_tokens(Prompt([1, 2, 3, 4, 5], "")) == 4
    blocks.apply([["BlockRemoved", [7]]])
    assert blocks.held_tokens(Prompt([1, 2, 3, 4, 5], "")) == 0
    blocks.apply([["AllBlocksCleared"]])
    assert len(blocks) == 0
    full = Blocks(salted=False, most=3)
    full.apply([["BlockStored", list(range(9)), None, list(range(18)), 2, None]])
    assert len(full) == 3, "memory is bounded"


Heard = queue.Queue[list[Any] | None]


@contextmanager
def listening(publisher: Publisher, *, replay: bool = True) -> Iterator[tuple[Subscription, Heard]]:
    events, asked = publisher.endpoints
    heard: Heard = queue.Queue()
    subscription = Subscription(events, asked if replay else None, lambda batch: heard.put(batch and list(batch)))
    try:
        yield subscription, heard
    finally:
        subscription.close()


def stored(number: int) -> KVEvent:
    return BlockStored([bytes([number])], None, [number], 1, None)


def numbers_of(batch: list[Any] | None) -> int | None:
    return None if batch is None else batch[0][1][0][0]


def until_heard(publisher: Publisher, heard: Heard) -> int:
    """Publishes until the subscription has arrived. Returns: the number that was heard last."""
    for number in range(250):
        publisher.publish([stored(number)])
        try:
            batch = heard.get(timeout=0.05 if number < 249 else WITHIN_S)
        except queue.Empty:
            continue
        while (last := numbers_of(batch)) != number:
            batch = heard.get(timeout=WITHIN_S)
        return last
    raise AssertionError("never heard")


def test_who_comes_late_is_told_what_was_before() -> None:
    publisher = Publisher("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    try:
        for number in range(5):
            publisher.publish([stored(number)])
        with listening(publisher) as (_, heard):
            assert [numbers_of(heard.get(timeout=WITHIN_S)) for _ in range(5)] == [0, 1, 2, 3, 4]
            publisher.publish([stored(5)])
            assert numbers_of(heard.get(timeout=WITHIN_S)) == 5
            publisher.publish([BlockRemoved([b"\5"]), AllBlocksCleared()])
            assert heard.get(timeout=WITHIN_S) == [["BlockRemoved", [b"\5"]], ["AllBlocksCleared"]]
    finally:
        publisher.close()


def test_a_gap_is_filled_by_the_replay_and_without_one_all_is_forgotten() -> None:
    for replay in (True, False):
        publisher = Publisher("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
        try:
            with listening(publisher, replay=replay) as (subscription, heard):
                for _ in range(3):
                    publisher.publish([stored(250)])
                last = until_heard(publisher, heard)
                number = subscription._next
                assert number is not None
                subscription._next = number - 2  # as if two had been lost on the way
                publisher.publish([stored(last + 1)])
                got = [numbers_of(heard.get(timeout=WITHIN_S)) for _ in range(3 if replay else 2)]
                assert got[-1] == last + 1
                assert got[-2] == (last if replay else None)
        finally:
            publisher.close()


def test_an_engine_that_starts_anew_is_forgotten_first() -> None:
    publisher = Publisher("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    events, replay = publisher.endpoints
    with listening(publisher) as (_, heard):
        until_heard(publisher, heard)
        publisher.close()
        assert heard.get(timeout=WITHIN_S) is None
        again = Publisher(events, replay)
        try:
            until_heard(again, heard)
        finally:
            again.close()


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Subscription("nowhere", None, lambda batch: None)
