"""A place among the replicas of a gateway's provider: taken when the engine is ready, renewed, given back at its end.

The gateway says how long a lease lasts and how often it wants to hear; an engine that is killed is missed when its
lease runs out. Any engine can do the same with two HTTP requests, or have it done beside itself:

    python -m local_backend.lease http://10.0.0.3:8000/v1 --models NAME --register http://gateway:4000 --register-as own
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Annotated, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from local_backend.config import REGISTER_TOKEN, BadSetting, register_token

log = logging.getLogger("local_backend")

ASK_S = 5.0
# Until the gateway has told how often it wants to hear from us, and while none answers.
RENEW_S = 2.0


class Kept(Struct, frozen=True):
    """What a gateway says to a renewal."""

    lease_s: float
    renew_s: Annotated[float, Meta(gt=0)]


class Left(Struct, frozen=True):
    """What it says to a farewell."""

    quiet_s: Annotated[float, Meta(ge=0)]


Told = TypeVar("Told", Kept, Left)


class Lease:
    """gateways: any of them will do, tried in turn. name: of this replica, the same after a restart. base_url: where
    gateways reach the engine, with its version. events: where it tells of its prefix cache, and where what was missed
    is asked for."""

    def __init__(
        self,
        gateways: Sequence[str],
        token: str,
        provider: str,
        name: str,
        base_url: str,
        models: Sequence[str],
        events: Sequence[str] = (),
    ) -> None:
        path = f"/replicas/{quote(provider, safe='')}/{quote(name, safe='')}"
        self._urls = [gateway.rstrip("/") + path for gateway in gateways]
        self._token = token
        self.base_url = base_url.rstrip("/")
        told = dict(zip(("kv_events", "kv_events_replay"), events, strict=False))
        self._said = json.dumps({"base_url": base_url, "models": list(models)} | told).encode()
        self._renew_s = RENEW_S
        self._held = False
        self._asked = False
        self._one_at_a_time = threading.Lock()

    async def keep(self) -> None:
        """Until cancelled: take the place and renew it. No gateway there, or none that wants us, is told in the log."""
        well = True
        while True:
            self._asked = True
            told = await asyncio.to_thread(self._ask, "PUT", self._said, Kept)
            if told is not None:
                if not self._held or not well:
                    log.info("registered as a replica; the lease lasts %g s", told.lease_s)
                self._held, self._renew_s = True, told.renew_s
            elif well:
                log.warning("not registered as a replica; trying on")
            well = told is not None
            await asyncio.sleep(self._renew_s * random.uniform(0.8, 1.0))  # noqa: S311 - so that not all come at once

    async def leave(self) -> float:
        """Give the place back, whatever became of the last renewal: a thread goes on with it when `keep` is cancelled,
        and must not take the place again behind us.

        Returns: seconds for which requests may still come, and are to be answered."""
        if not self._asked:
            return 0.0
        self._asked = False
        told = await asyncio.to_thread(self._ask, "DELETE", None, Left)
        return 0.0 if told is None else told.quiet_s

    def _ask(self, method: str, body: bytes | None, kind: type[Told]) -> Told | None:
        """The first gateway's answer. None: nobody took it."""
        with self._one_at_a_time:
            return self._ask_in_turn(method, body, kind)

    def _ask_in_turn(self, method: str, body: bytes | None, kind: type[Told]) -> Told | None:
        for url in self._urls:
            headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
            request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 - the operator's own URL
            try:
                with urllib.request.urlopen(request, timeout=ASK_S) as answer:  # noqa: S310
                    return msgspec.json.decode(answer.read(), type=kind)
            except urllib.error.HTTPError as error:
                log.warning("%s: %s %s", url, error.code, error.read(500).decode("utf-8", "replace"))
            except (OSError, ValueError, msgspec.DecodeError) as error:  # the last: who answers is no gateway of ours
                log.warning("%s: %s", url, error)
        return None


def lease_of(
    gateways: str,
    token: str | None,
    provider: str | None,
    name: str | None,
    base_url: str,
    models: Sequence[str],
    events: Sequence[str] = (),
) -> Lease:
    """gateways: with commas between several. events: of the prefix cache, as they are bound here; gateways reach them
    on the host of base_url. Raises: BadSetting that names what is missing."""
    if not provider:
        raise BadSetting("register_as: name the gateway's provider that has `replicas = true`")
    if not token:
        raise BadSetting(f"no token to register with: set {REGISTER_TOKEN} to the gateway's `replicas.token`")
    host = base_url.partition("://")[2].rpartition(":")[0]
    if not base_url.startswith(("http://", "https://")) or host in ("0.0.0.0", "[::]"):  # noqa: S104
        raise BadSetting("advertise: say where gateways reach this engine, as http://host:port/v1")
    named = name or base_url.partition("://")[2].partition("/")[0].replace("[", "").replace("]", "")
    told = [each.strip() for each in gateways.split(",") if each.strip()]
    shown = [f"tcp://{host}:{each.rpartition(':')[2]}" for each in events]
    return Lease(told, token, provider, named, base_url, models, shown)


async def beside(lease: Lease, drain_s: float) -> None:
    """For an engine of another make: takes its lease once it answers, keeps it until SIGTERM, then leaves, waits until
    nothing more is sent there and `drain_s` more for what is being answered."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    keeping = asyncio.create_task(_keep_when_ready(lease))
    await asyncio.wait({keeping, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
    keeping.cancel()
    await asyncio.sleep(await lease.leave() + drain_s)


async def _keep_when_ready(lease: Lease) -> None:
    while True:
        if await asyncio.to_thread(_answers, lease.base_url):
            return await lease.keep()
        await asyncio.sleep(RENEW_S)


def _answers(base_url: str) -> bool:
    """Whether there is an engine, be it one that wants a key to say what it serves: weights load for minutes."""
    try:
        with urllib.request.urlopen(f"{base_url}/models", timeout=ASK_S):  # noqa: S310 - the operator's own URL
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def main(argv: list[str]) -> int:
    """Returns: exit status."""
    parser = argparse.ArgumentParser(prog="local_backend.lease", description="Register an engine as a replica.")
    parser.add_argument("base_url", help="where gateways reach it, as http://host:port/v1")
    parser.add_argument("--register", required=True, help="gateways, with commas between several")
    parser.add_argument("--register-as", required=True, help="the provider that takes replicas")
    parser.add_argument("--name", help="of this replica (default: its host and port)")
    parser.add_argument("--models", default="", help="what it serves, with commas (default: whatever it is asked for)")
    parser.add_argument("--kv-events", help="where it tells of its prefix cache, as tcp://*:5557")
    parser.add_argument("--kv-events-replay", help="where it tells again what was missed, as tcp://*:5558")
    parser.add_argument("--drain-s", type=float, default=0.0, help="seconds to wait after leaving")
    said = parser.parse_args(argv)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    models = [each for each in said.models.split(",") if each]
    events = [each for each in (said.kv_events, said.kv_events and said.kv_events_replay) if each]
    try:
        lease = lease_of(said.register, register_token(), said.register_as, said.name, said.base_url, models, events)
    except BadSetting as error:
        sys.stderr.write(f"local_backend.lease: {error}\n")
        return 2
    asyncio.run(beside(lease, said.drain_s))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
