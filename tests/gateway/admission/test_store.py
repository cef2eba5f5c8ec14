"""Which Redis is meant by a URL, whose slot a key is in, and whose life a server is in."""

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from gateway.admission.cluster import Map, map_of, slot_of
from gateway.admission.link import UNTOLD, Server, boot_of
from gateway.admission.store import Cluster, Sentinels, store_from


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pw@host:7000/3",
        "redis://",
        "redis://host?db=2",
        "rediss://ann:p%40ss@host",
        "rediss://[::1]:7000/1?ssl_ca_certs=/ca%20s.pem&ssl_cert_reqs=none&ssl_check_hostname=false",
        "rediss://host?ssl_check_hostname=True&ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_password=x",
        "unix:///a/so%20cket",
        "unix://ann:pw@/a/socket?db=1",
    ],
)
def test_one_server_is_read_as_redis_py_reads_it(url: str) -> None:
    ours, theirs = store_from(url), Server.of(Redis.from_url(url))
    assert isinstance(ours, Server)
    assert ours.tls == theirs.tls
    names = ("host", "port", "path", "username", "password", "ssl_ca_certs", "ssl_cert_reqs", "ssl_check_hostname",
             "ssl_certfile", "ssl_keyfile", "ssl_password")  # fmt: skip
    assert {n: ours.settings.get(n) for n in names} == {n: theirs.settings.get(n) for n in names}
    assert ours.settings["db"] == (theirs.settings.get("db") or 0)


def test_a_cluster_by_some_of_its_nodes() -> None:
    found = store_from("rediss+cluster://ann:p%40ss@a:7000,b,[::1]:7002/?ssl_ca_certs=/ca.pem")
    assert isinstance(found, Cluster)
    assert found.seeds == (("a", 7000), ("b", 6379), ("::1", 7002))
    assert found.server.tls
    assert {found.server.settings[name] for name in ("username", "password", "ssl_ca_certs")} == {
        "ann", "p@ss", "/ca.pem",
    }  # fmt: skip
    assert found.server.at(("c", 1)).settings["host"] == "c"


def test_sentinels_have_a_password_of_their_own() -> None:
    found = store_from("redis+sentinel://:secret@a,b:26380/main?db=2&sentinel_password=other")
    assert isinstance(found, Sentinels)
    assert (found.seeds, found.name) == ((("a", 26379), ("b", 26380)), "main")
    assert (found.server.settings["password"], found.server.settings["db"]) == ("secret", 2)
    assert found.sentinel.settings["password"] == "other"
    assert "db" not in found.sentinel.settings


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://", "names no server"),
        ("redis+cluster://a:7000/3", "one database"),
        ("redis+cluster://a:7000?db=3", "one database"),
        ("redis+cluster://a:seven", "ort"),
        ("redis+sentinel://a", "does not name the master"),
        ("redis+ring://a", "no kind of Redis"),
        ("http://a", "none of redis://"),
        ("redis://a/three", "no number of a database"),
        ("redis://a?db=x", "no number of a database"),
        ("redis://a:seven", "ort"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        store_from(url)


@pytest.mark.parametrize(
    "key", ["foo", "fb:{org_1}:muster", "{}x", "a{b}c{d}", "{unclosed", "x}{y}", "{{a}}", "ä{ö}", ""]
)
def test_slots_are_those_of_everybody_else(key: str) -> None:
    assert slot_of(key) == key_slot(key.encode())


def test_the_map_of_a_cluster() -> None:
    slots = [
        [8000, 16383, [b"10.0.0.2", 7002, b"id2", []], [b"10.0.0.3", 7003, b"id3", []]],
        [0, 99, [None, 7001, b"id1", []]],
        [200, 300, [b"?", 7009, b"id9", []]],
    ]
    found = map_of(5, slots, ("asked.example", 7001))
    assert found.master_of(0) == found.master_of(99) == ("asked.example", 7001)
    assert found.master_of(100) is found.master_of(250) is found.master_of(7999) is None
    assert found.master_of(8000) == found.master_of(16383) == ("10.0.0.2", 7002)
    assert ("10.0.0.3", 7003) in found.nodes
    assert Map().master_of(0) is None


def test_a_life_ends_with_a_restart_and_with_a_handover() -> None:
    never = {"master_replid2": "0" * 40, "second_repl_offset": "-1"}
    once = {"master_replid2": "ab" * 20, "second_repl_offset": "120"}
    again = once | {"second_repl_offset": "999"}
    lives = [boot_of("1" * 40, never), boot_of("2" * 40, never), boot_of("1" * 40, once), boot_of("1" * 40, again)]
    assert len(set(lives)) == 4
    assert {len(life) for life in lives} == {len(UNTOLD)}
    assert boot_of("1" * 40, {}) == lives[0], "a server that does not tell of it"
    assert boot_of("", once) == UNTOLD
