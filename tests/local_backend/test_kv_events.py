"""Changes of the prefix cache as routers see them: a shadow built from them alone is the cache itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from local_backend.kv_events import END_OF_REPLAY, Publisher
from local_backend.messages import AddRequest, AllBlocksCleared, BlockRemoved, BlockStored, KVEvent, Sampling
from tests.local_backend.support import EngineProcess
from tests.local_backend.test_scheduler import MAX_LEN, make, prompts, samplings

WAIT_MS = 20_000


def follow(shadow: dict[bytes, tuple[bytes | None, list[int]]], events: list[KVEvent]) -> None:
    """What a router does."""
    for event in events:
        match event:
            case BlockStored(hashes, parent, tokens, size, _):
                assert len(tokens) == size * len(hashes)
                assert parent is None or parent in shadow, "a chain begins in what is known"
                for at, hash_ in enumerate(hashes):
                    assert hash_ not in shadow
                    shadow[hash_] = (parent, tokens[at * size : (at + 1) * size])
                    parent = hash_
            case BlockRemoved(hashes):
                for hash_ in hashes:
                    del shadow[hash_]
            case AllBlocksCleared():
                shadow.clear()


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(prompts, samplings), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 6))
def test_a_shadow_of_the_events_is_the_cache(requests: list[Any], block_size: int, spare: int) -> None:
    engine = make(-(-MAX_LEN // block_size) + spare, block_size, 16, 3)
    engine.scheduler.blocks.events = []
    shadow: dict[bytes, tuple[bytes | None, list[int]]] = {}
    for id_, (prompt, sampling) in enumerate(requests):
        engine.take(AddRequest(id_, prompt, sampling))
    while engine.has_work:
        for event in engine.step().kv_events:
            if isinstance(event, BlockStored) and event.parent_block_hash not in (None, *shadow):
                event = msgspec.structs.replace(event, parent_block_hash=None)  # its parent was another copy's
            follow(shadow, [event])
        assert shadow.keys() == engine.scheduler.blocks.cache._block_of.keys()


def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    assert socket.poll(WAIT_MS), "nothing came"
    return socket.recv_multipart()


def test_batches_are_numbered_and_replayed_in_vllms_form() -> None:
    publisher = Publisher("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", topic="kv")
    with zmq.Context() as context, context.socket(zmq.SUB) as listener, context.socket(zmq.DEALER) as asker:
        out, replay = publisher.endpoints
        listener.connect(out)
        listener.subscribe(b"")
        asker.connect(replay)
        sent = 0
        while not listener.poll(20):  # until the subscription has arrived
            publisher.publish([BlockStored([b"h"], None, [1, 2], 2, None)])
            sent += 1
            assert sent < 1000
        topic, number, payload = receive(listener)
        assert (topic, len(number)) == (b"kv", 8)
        ts, events = msgspec.msgpack.decode(payload)[:2]
        assert ts > 1.7e9
        assert events == [["BlockStored", [b"h"], None, [1, 2], 2, None]]
        publisher.publish([BlockRemoved([b"h"])])
        publisher.clear()
        asker.send_multipart([b"", (sent).to_bytes(8, "big")])
        asker.send_multipart([b"", b"malformed"])
        got: list[Any] = []
        while (frames := receive(asker))[1] != END_OF_REPLAY or len(got) < 2:
            if frames[1] == END_OF_REPLAY:  # asked before the thread had taken both
                got.clear()
                asker.send_multipart([b"", (sent).to_bytes(8, "big")])
                continue
            got.append((int.from_bytes(frames[1], "big"), msgspec.msgpack.decode(frames[2])[1]))
        assert got[-2:] == [(sent, [["BlockRemoved", [b"h"]]]), (sent + 1, [["AllBlocksCleared"]])]
    publisher.close()


def test_an_engine_tells_what_it_keeps(tiny: Path) -> None:
    argv = ["--port", "0", "--die-with-parent", "--block-size", "8", "--dtype", "float32", "--kv-cache-bytes", "8MiB"]
    engine = EngineProcess(
        str(tiny), *argv, "--kv-events", "tcp://127.0.0.1:*", "--kv-events-replay", "tcp://127.0.0.1:*"
    )
    try:
        _, replay = engine.wait_for("kv_events")["urls"]
        engine.url = engine.wait_for("listening")["url"]
        engine.wait_for("ready")
        prompt = list(range(3, 30))
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "ignore_eos": True}
        assert httpx.post(engine.url + "/v1/completions", json=body, timeout=60).status_code == 200
        with zmq.Context() as context, context.socket(zmq.DEALER) as asker:
            asker.connect(replay)
            asker.send_multipart([b"", (0).to_bytes(8, "big")])
            _, number, payload = receive(asker)
            assert int.from_bytes(number, "big") == 0
            stored = [event for event in msgspec.msgpack.decode(payload)[1] if event[0] == "BlockStored"]
            assert [event[3] for event in stored] == [prompt[:8], prompt[8:16], prompt[16:24]]
            assert [event[2] for event in stored] == [None, stored[0][1][0], stored[1][1][0]]
    finally:
        engine.stop()


def test_nobody_asks_and_nothing_is_kept() -> None:
    engine = make(20, 2, 16, 3)
    engine.take(AddRequest(0, [1, 2, 3, 4], Sampling(max_tokens=1)))
    assert engine.step().kv_events == []
