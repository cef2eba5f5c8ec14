"""Keeps who guesses keys from keeping the database busy. In the process, bounded, by address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from gateway.errors import RateLimited

# Wrong keys that cost a look-up: this many at once, then one every two seconds. Typos and keys known to be wrong cost
# none and count for nothing, so a client with an old key in its settings does not lock out its neighbours.
BURST: Final = 30
MS_PER_GUESS: Final = 2_000
ADDRESSES_MAX: Final = 8_192

IpAddress = IPv4Address | IPv6Address


class Floods:
    """For each address the time at which its guesses will be forgotten: that is a leaky bucket in one number."""

    def __init__(self) -> None:
        self._empty_ms: dict[str, int] = {}

    def check(self, client_ip: str, now_ms: int) -> None:
        """Raises: RateLimited for an address with too many wrong keys."""
        over_ms = self._empty_ms.get(_origin(client_ip), 0) - now_ms - (BURST - 1) * MS_PER_GUESS
        if over_ms > 0:
            raise RateLimited(
                "too many wrong API keys from this address",
                retry_after_s=min(over_ms, MS_PER_GUESS) / 1000,
                scope="address",
                unit="requests",
            )

    def failed(self, client_ip: str, now_ms: int) -> None:
        """One more wrong key from there."""
        origin = _origin(client_ip)
        # Re-inserted, so that the first in the dictionary is the one that has been quiet for longest.
        empty_ms = max(self._empty_ms.pop(origin, 0), now_ms) + MS_PER_GUESS
        if len(self._empty_ms) >= ADDRESSES_MAX:
            del self._empty_ms[next(iter(self._empty_ms))]
        self._empty_ms[origin] = min(empty_ms, now_ms + BURST * MS_PER_GUESS)

    def __len__(self) -> int:
        return len(self._empty_ms)


def address_of(client_ip: str) -> IpAddress | None:
    """The address, an IPv4 one that came over IPv6 as IPv4; None for what is no address (a Unix socket)."""
    try:
        address = ip_address(client_ip)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _origin(client_ip: str) -> str:
    address = address_of(client_ip)
    if isinstance(address, IPv6Address):
        # Whoever has one address of a /64 has all of them.
        return str(int(address) >> 64)
    return client_ip if address is None else str(address)
