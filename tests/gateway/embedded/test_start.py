"""Secrets, the lock of a data folder, and the first things that are made in it."""

import asyncio
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts
from billing.db import create_engine, reading
from billing.pricelist import load_prices
from billing.usage import Meter
from gateway.admin.auth import people
from gateway.admission.key_admin import KeyAdmin
from gateway.config import ConfigError, Settings, load
from gateway.embedded.bootstrap import bootstrap
from gateway.embedded.instance import AlreadyRunning, Instance, Running, find_running
from gateway.embedded.secrets import Secrets, kept

PEPPER = b"a pepper for tests"
NOW_NS = 1_795_000_000 * 10**9


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    settings = load(environ={}, flags={"data_dir": tmp_path})
    first, again = Secrets.load(settings), Secrets.load(settings)
    assert first == again
    assert first.key_pepper != first.engine_key
    assert first.key_pepper not in repr(first)
    for name in ("key_pepper", "engine_key"):
        assert stat.S_IMODE((tmp_path / "secrets" / name).stat().st_mode) == 0o600


def test_processes_that_start_at_once_agree_on_a_secret(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        values = pool.starmap(kept, [(tmp_path, "key_pepper")] * 32)
    assert len(set(values)) == 1
    assert [path.name for path in (tmp_path / "secrets").iterdir()] == ["key_pepper"]


def test_a_given_pepper_is_used_and_a_weak_or_damaged_one_refused(tmp_path: Path) -> None:
    environ = {"FAREBOX_KEY_PEPPER": "given-given-given"}
    assert Secrets.load(load(environ=environ, flags={"data_dir": tmp_path})).key_pepper == "given-given-given"
    with pytest.raises(ConfigError, match="too short"):
        Secrets.load(load(environ={"FAREBOX_KEY_PEPPER": "weak"}, flags={"data_dir": tmp_path}))
    (tmp_path / "secrets" / "key_pepper").write_text("cut")
    with pytest.raises(ConfigError, match="damaged"):
        Secrets.load(load(environ={}, flags={"data_dir": tmp_path}))


def test_one_folder_has_one_running_instance(tmp_path: Path) -> None:
    assert find_running(tmp_path) is None
    with Instance(tmp_path) as instance:
        told = Running(pid=os.getpid(), base_url="http://h:1", redis_url="unix:///s")
        instance.tell(told)
        assert find_running(tmp_path) == told
        with pytest.raises(AlreadyRunning, match=r"http://h:1.*--data") as caught, Instance(tmp_path):
            pass
        assert caught.value.pid == os.getpid()
    assert find_running(tmp_path) is None
    with Instance(tmp_path):
        pass


def _hold_and_die(folder: Path) -> None:
    with Instance(folder) as instance:
        instance.tell(Running(pid=os.getpid(), base_url="http://dead"))
        os._exit(9)


def test_a_killed_instance_leaves_nothing_to_clean_up(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(tmp_path,))
    process.start()
    process.join(20)
    assert process.exitcode == 9
    assert (tmp_path / "run" / "up.json").exists()
    assert find_running(tmp_path) is None
    with Instance(tmp_path):
        assert not (tmp_path / "run" / "up.json").exists()


@pytest.fixture
def engine(fresh_database_url: str) -> AsyncEngine:
    return create_engine(fresh_database_url)


def settings_in(folder: Path, **environ: str) -> Settings:
    return load(environ=environ, flags={"data_dir": folder})


async def test_the_first_start_makes_what_later_ones_find(engine: AsyncEngine, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    first = await bootstrap(engine, settings, PEPPER, at_ns=NOW_NS)
    again = await bootstrap(engine, settings, PEPPER, at_ns=NOW_NS + 1)
    assert first.key is not None
    assert first.key == again.key
    assert first.key not in repr(first)
    assert first.sign_in_url is not None
    assert first.sign_in_url.startswith("http://127.0.0.1:4000/ui/")
    keys = KeyAdmin(engine, None, PEPPER)
    assert len(await keys.list_keys()) == 1
    async with reading(engine) as db:
        assert [project.name for project in await accounts.projects(db)] == ["demo"]
        assert len(await accounts.organisations(db)) == 1
        sheet = (await load_prices(db)).sheet("local", settings.local.served_name, NOW_NS + 2)
    assert sheet.sale[Meter.OUTPUT_TOKENS] == 10_000_000
    assert sheet.cost[Meter.OUTPUT_TOKENS] == 0
    await keys.revoke_key((await keys.list_keys())[0].id, actor="test", now_ns=NOW_NS + 2)
    assert (await bootstrap(engine, settings, PEPPER, at_ns=NOW_NS + 3)).key is None
    await engine.dispose()


async def test_a_start_that_lost_its_folder_does_not_make_a_second_key(engine: AsyncEngine, tmp_path: Path) -> None:
    await bootstrap(engine, settings_in(tmp_path / "a"), PEPPER, at_ns=NOW_NS)
    other = await bootstrap(engine, settings_in(tmp_path / "b"), PEPPER, at_ns=NOW_NS)
    assert other.key is None
    await engine.dispose()


@pytest.mark.parametrize("given", [None, "an-operator-made-this-key-by-hand"])
async def test_gateways_that_start_at_once_make_one_of_each(
    engine: AsyncEngine, tmp_path: Path, given: str | None
) -> None:
    """Each on a machine of its own, with a folder of its own, and one database."""
    environ = {} if given is None else {"FAREBOX_BOOTSTRAP_KEY": given}
    firsts = await asyncio.gather(
        *(bootstrap(engine, settings_in(tmp_path / f"{n}", **environ), PEPPER, at_ns=NOW_NS + n) for n in range(8))
    )
    assert all(first.sign_in_url for first in firsts)
    assert sum(first.key is not None for first in firsts) == (8 if given else 1)
    assert len(await KeyAdmin(engine, None, PEPPER).list_keys()) == 1
    async with reading(engine) as db:
        assert len(await accounts.organisations(db)) == 1
        assert [project.name for project in await accounts.projects(db)] == ["demo"]
        assert [user.name for user in await people.users(db)] == ["owner"]
    await engine.dispose()


async def test_the_first_key_may_come_from_outside(engine: AsyncEngine, tmp_path: Path) -> None:
    given = "an-operator-made-this-key-by-hand"
    settings = settings_in(tmp_path, FAREBOX_BOOTSTRAP_KEY=given)
    for _ in range(2):
        assert (await bootstrap(engine, settings, PEPPER, at_ns=NOW_NS)).key == given
    assert [key.name for key in await KeyAdmin(engine, None, PEPPER).list_keys()] == ["bootstrap"]
    assert not (tmp_path / "secrets" / "first_key").exists()
    # Where only this machine can ask, a key may be shorter than where a network can.
    for host, key, said in (("127.0.0.1", "short", "8 to 512"), ("0.0.0.0", "nobody-guesses-me", "24 to 512")):
        settings = settings_in(tmp_path, FAREBOX_BOOTSTRAP_KEY=key, FAREBOX_SERVER__HOST=host)
        with pytest.raises(ConfigError, match=said) as caught:
            await bootstrap(engine, settings, PEPPER, at_ns=NOW_NS)
        assert key not in str(caught.value).split()
    await engine.dispose()


async def test_a_price_said_again_changes_nothing_and_a_new_one_counts_from_now(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    await bootstrap(engine, settings_in(tmp_path), PEPPER, at_ns=NOW_NS)
    dearer = settings_in(tmp_path, FAREBOX_LOCAL__PRICE='{"input": "3", "output": "30"}')
    await bootstrap(engine, dearer, PEPPER, at_ns=NOW_NS + 10)
    async with reading(engine) as db:
        book = await load_prices(db)
    name = dearer.local.served_name
    assert book.sheet("local", name, NOW_NS + 5).sale[Meter.OUTPUT_TOKENS] == 10_000_000
    assert book.sheet("local", name, NOW_NS + 11).sale[Meter.OUTPUT_TOKENS] == 30_000_000
    await engine.dispose()


def test_the_lock_is_quick(tmp_path: Path) -> None:
    started = time.monotonic()
    with Instance(tmp_path):
        assert asyncio.run(asyncio.to_thread(find_running, tmp_path)) is None
    assert time.monotonic() - started < 5
