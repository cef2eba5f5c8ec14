"""How every process hears that a key, a limit or a budget has changed: a message, and a version for who missed it.

The version is a random name, not a number: after Redis lost its data, a count could come to the old value again.
"""

from __future__ import annotations

import secrets
from contextlib import aclosing
from typing import Final

import hiredis
import structlog

from gateway.admission.store import LimitStore, link_to
from gateway.errors import Unavailable

log = structlog.get_logger(__name__)

VERSION: Final = "fb:keys:version"
CHANNEL: Final = "fb:keys:changed"
EVERYTHING: Final = "*"

# One step, so that no process can see the new version before the message that explains it was sent.
_ANNOUNCE: Final = """
local old = redis.call('GET', KEYS[1]) or ''
redis.call('SET', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[2], old .. ' ' .. ARGV[1] .. ' ' .. ARGV[3])
"""


async def announce(redis: LimitStore, public_id: str = EVERYTHING) -> bool:
    """Tell every process that a key (or everything, when a project's or an organisation's terms changed) is to be read
    again. Call it after the commit.

    Returns: False when Redis is away; processes that still reach it feel the change within half a minute."""
    try:
        async with aclosing(link_to(redis)) as link:
            await link.call("EVAL", _ANNOUNCE, 1, VERSION, secrets.token_hex(8), CHANNEL, public_id, near=VERSION)
    except (Unavailable, hiredis.ReplyError) as error:
        log.warning("change of keys not announced", public_id=public_id, reason=type(error).__name__)
        return False
    return True
