"""`farebox credentials`: what providers are asked with, sealed in the database and never shown again."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import App, Parameter

from gateway.cli.common import CHANGES, DEFAULTS, OK, Changes, Common, emit, make_table
from gateway.cli.offering import catalogue, fields_of, in_force, shown
from gateway.cli.site import Read, acting

app = App(name="credentials")

ACTOR = "farebox credentials"


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """Show the stored credentials: where each field is, or the last characters and fingerprint of its value."""
    _, document, stored = await in_force(common.settings())
    rows = [
        {
            "credential": name,
            "fields": fields,
            "used_by": [
                *(f"providers/{each}" for each, said in document.providers.items() if said.credential == name),
                *(f"deployments/{each}" for each, said in document.deployments.items() if said.credential == name),
            ],
        }
        for name, fields in stored.items()
    ]
    cells = [
        [row["credential"], ", ".join(f"{k}: {v}" for k, v in stored[str(row["credential"])].items()),
         ", ".join(row["used_by"])]
        for row in rows
    ]  # fmt: skip
    emit(common, {"credentials": rows}, lambda: make_table(["credential", "fields", "used by"], cells))
    return OK


@app.command(name="set")
async def set_(
    name: str,
    /,
    *,
    kind: str,
    reference: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    credential: Read | None = None,
    common: Changes = CHANGES,
) -> int:
    """Store a credential, or a new value of one: whoever uses it does so with the new value within two seconds.

    Parameters
    ----------
    name:
        What providers and deployments name it by.
    kind:
        Of the provider it is for, as bedrock.
    reference:
        FIELD=REFERENCE, as api_key=env:OPENAI_API_KEY or api_key=vault:secret/openai#api_key. May be repeated.
    credential:
        A file with lines of FIELD=VALUE. Values are not taken from the command line.
    """
    from gateway.catalogue.changes import Sealing
    from gateway.catalogue.store import shown as seen

    fields = fields_of(reference, credential)
    async with catalogue(common) as changes:
        await changes.keep(Sealing(name, kind, fields), actor=acting(ACTOR), now_ns=time.time_ns())
    told = {field: shown(seen(text)) for field, text in fields.items()}
    emit(common, {"credential": name, "fields": told}, lambda: f"{name} is stored")
    return OK


@app.command
async def remove(name: str, /, *, common: Changes = CHANGES) -> int:
    """Forget a credential. Refused while something names it.

    Parameters
    ----------
    name:
        As `farebox credentials list` shows it.
    """
    async with catalogue(common) as changes:
        await changes.forget(name, actor=acting(ACTOR), now_ns=time.time_ns())
    emit(common, {"credential": name, "removed": True}, lambda: f"{name} is gone")
    return OK


@app.command(name="rotate-ring")
async def rotate_ring(*, common: Changes = CHANGES) -> int:
    """Wrap every credential anew under the key ring's first key, and before that, where the ring lies in the data
    folder, put a new key at its front. Gateways go on meanwhile.

    A ring of your own (FAREBOX_KEY_RING) you turn yourself: put the new key first on every gateway, restart them, then
    run this; afterwards the old key can go. The other keys of a ring in the data folder stay in it."""
    from gateway.kept import key_ring, rotate_kept_ring

    settings = common.settings()
    if settings.key_ring is None and not common.dry_run:
        rotate_kept_ring(settings.data_dir)
    ring = key_ring(settings)
    async with catalogue(common) as changes:
        count = await changes.rewrap(actor=acting(ACTOR), now_ns=time.time_ns())
    value = {"key": ring.current, "keys": list(ring.ids), "rewrapped": count}
    emit(common, value, lambda: f"{count} credentials are sealed under {ring.current} now")
    return OK
