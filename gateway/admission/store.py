"""Which Redis: one server, one that Sentinels know, or a cluster. From its URL to what speaks to it.

    redis://[user:password@]host:port/0             rediss:// with TLS, unix:///path
    redis+cluster://[user:password@]a:7000,b:7000   rediss+cluster:// with TLS
    redis+sentinel://[user:password@]a:26379,b:26379/name   rediss+sentinel:// with TLS; ?sentinel_password=

Options of the query have redis-py's names (`ssl_ca_certs`, `db`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import hiredis
from msgspec import Struct

from gateway.admission.cluster import ClusterLink
from gateway.admission.link import REPLY_S, Address, Link, Server
from gateway.errors import LimitsAway, Unavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

_SENTINEL_PORT: Final = 26_379
_PORT: Final = 6_379


class Cluster(Struct, frozen=True):
    """seeds: some of its nodes; these name the others. server: how each is greeted."""

    seeds: tuple[Address, ...]
    server: Server


class Sentinels(Struct, frozen=True):
    """They know which server is the master called `name`. sentinel: how they are greeted, server: how it is."""

    seeds: tuple[Address, ...]
    name: str
    server: Server
    sentinel: Server

    async def master(self) -> Address:
        """Raises: Unavailable."""
        for seed in self.seeds:
            link = Link(self.sentinel.at(seed))
            try:
                found = await link.call("SENTINEL", "get-master-addr-by-name", self.name)
                if found is not None:
                    return found[0].decode(), int(found[1])
            except (Unavailable, hiredis.ReplyError):
                continue
            finally:
                await link.aclose()
        raise LimitsAway("no sentinel knows the rate limit store")


LimitStore: TypeAlias = "Server | Cluster | Sentinels | Redis"
"""Of redis-py's client only the settings are used."""

AnyLink = Link | ClusterLink


def store_from(url: str) -> LimitStore:
    """Raises: ValueError that says what is wrong with it."""
    scheme, _, rest = url.partition("://")
    kind, plus, served = scheme.partition("+")
    if not plus:
        return server_at(url)
    where, _, options = rest.partition("?")
    where, _, path = where.partition("/")
    login, at, hosts = where.rpartition("@")
    port = _SENTINEL_PORT if served == "sentinel" else _PORT
    seeds = tuple(_seed(host, port) for host in hosts.split(",") if host)
    if not seeds:
        raise ValueError("names no server; write host:port, with commas between several")
    told = dict(parse_qsl(options))
    sentinel_password = told.pop("sentinel_password", None)
    query = f"?{urlencode(told)}" if told else ""
    server = server_at(f"{kind}://{login}{at}localhost{query}")
    if served == "cluster":
        if path.strip("/") not in ("", "0") or int(server.settings.get("db") or 0):
            raise ValueError("a cluster has one database, number 0")
        return Cluster(seeds, server)
    if served != "sentinel":
        raise ValueError(f"{scheme}:// is no kind of Redis")
    if not path:
        raise ValueError("does not name the master: redis+sentinel://host:26379/NAME")
    settings = {name: value for name, value in server.settings.items() if name not in ("username", "password", "db")}
    if sentinel_password is not None:
        settings["password"] = sentinel_password
    return Sentinels(seeds, path, server, Server(settings, server.tls))


def server_at(url: str) -> Server:
    """One server. Source: redis-py 8.1, asyncio.connection.parse_url, read 2026-11. Raises: ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("begins with none of redis://, rediss://, unix://")
    settings: dict[str, Any] = dict(parse_qsl(parts.query))
    if "ssl_check_hostname" in settings:
        settings["ssl_check_hostname"] = settings["ssl_check_hostname"].lower() not in ("0", "f", "false", "n", "no")
    if parts.scheme == "unix":
        settings["path"] = unquote(parts.path)
    else:
        settings.setdefault("db", parts.path.strip("/") or "0")
        if parts.hostname:
            settings["host"] = unquote(parts.hostname)
        if parts.port:
            settings["port"] = parts.port
    if not str(settings.get("db", "0")).isdecimal():
        raise ValueError(f"{settings['db']!r} is no number of a database")
    settings["db"] = int(settings.get("db", "0"))
    for name in ("username", "password"):
        if value := getattr(parts, name):
            settings[name] = unquote(value)
    return Server(settings, parts.scheme == "rediss")


def link_to(store: LimitStore, *, reply_s: float = REPLY_S) -> AnyLink:
    """Opened by its first command. Whoever asked for it closes it."""
    match store:
        case Cluster():
            return ClusterLink(store.seeds, store.server, reply_s=reply_s)
        case Sentinels():
            return Link(store.server, reply_s=reply_s, locate=store.master)
    return Link(store, reply_s=reply_s)


def _seed(host: str, port: int) -> Address:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError(f"{host!r} is no host:port")
    return parts.hostname, parts.port or port
