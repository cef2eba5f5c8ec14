"""The `farebox` command: one file per noun, each imported only when its command is asked for.

Exit codes: 0 done; 1 the thing asked about is not well, or it was refused or could not be done; 2 wrong usage or a bad
setting; 3 something that the command needs is away (database, Redis, a model source, the gateway of --url); 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App

COMMANDS = {
    "up": "Start everything on this machine and print how to use it.",
    "serve": "Run gateway processes against a given database and Redis.",
    "worker": "Ship usage records of this data folder into the database, without serving.",
    "engine": "Run the local engine by itself.",
    "migrate": "Bring the database to the newest schema and the shipped prices.",
    "check": "Look at everything that Farebox needs and say what to mend.",
    "config": "Show, check and describe the settings.",
    "keys": "Virtual keys: create, list, show, rotate, revoke.",
    "projects": "What keys and budgets belong to.",
    "quotas": "Budgets and rate limits of every scope; teams.",
    "tokens": "API tokens, for automation and for `farebox --url`.",
    "users": "People: invite, roles, links, disable, sign out everywhere.",
    "audit": "Who changed what, and the proof that nobody edited it since.",
    "usage": "What was used and what it cost.",
    "ledger": "Balances, and the proof that they add up.",
    "invoice": "What an organisation owes for a month, as text, CSV or PDF.",
    "topup": "Money paid in, and credit granted.",
    "alerts": "Who is told when a budget is nearly used, a balance low, or spending unusual.",
    "top": "What happens now: requests, tokens, spending, waits; live.",
    "guardrails": "What may not go in or come out: rules, and a trial of them.",
    "bodies": "What requests and answers said, for projects that log it: switched on and off, read.",
    "export": "Requests as files, and what metering services have not heard of.",
    "import": "What another gateway had: its configuration, keys, budgets and spending.",
    "reconcile": "Compare with what a provider says it counted and charged.",
    "models": "Models that can be asked for; local ones to fetch and remove.",
    "providers": "Providers: add, test, list, remove.",
    "credentials": "What providers are asked with: stored sealed, listed, rotated.",
    "route": "Where a request would go and why; aliases: set, try dry, remove.",
    "prices": "The price book.",
    "demo": "A sample organisation with a month of usage, live traffic, and all of it gone again.",
    "completion": "What a shell needs to complete `farebox` with the Tab key.",
    "bench": "Measure a gateway from outside; `bench serve` is one to measure.",
}


_MODULES = {"import": "importing"}
"""Nouns that cannot be the name of a module."""


def build() -> App:
    app = App(
        name="farebox",
        help="Any SDK in, any provider out, every token paid for exactly once.",
        version=_version,
        help_epilogue="Settings: flags, FAREBOX_SECTION__KEY, farebox.toml or .yaml, in this order. "
        "Every command takes --config, --data and --json; --url or FAREBOX_URL, with FAREBOX_TOKEN, sends it away. "
        "Exit codes: 0 done, 1 refused or not well, 2 wrong usage, 3 something needed is away.",
    )
    for name, about in COMMANDS.items():
        app.command(f"gateway.cli.{_MODULES.get(name, name)}:app", name=name, help=about)
    return app


def run(argv: Sequence[str]) -> int:
    """Returns: the exit code."""
    from gateway.cli.common import report

    try:
        result = _run(build(), list(argv))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return report(error, as_json="--json" in argv)
    return result if isinstance(result, int) else 0


def _run(app: App, argv: list[str]) -> object:
    """Here or elsewhere, once or again and again. Raises: whatever the command does."""
    from gateway.cli.common import Changes, Common
    from gateway.config import remote_installation

    function, bound, _ = app.parse_args(argv)
    common = bound.arguments.get("common")
    if common is None and "common" in bound.signature.parameters:
        common = bound.signature.parameters["common"].default
    if not isinstance(common, Common):
        return app(argv, result_action="return_value")
    url, token = remote_installation()
    url = common.url or url

    def once() -> object:
        if url is not None:
            from gateway.cli import remote
            from gateway.cli.hosted import call_of

            call = call_of(function, bound, app.parse_commands(argv)[0])
            if call.travels:
                return remote.run(argv, call, url, token)
        return app(argv, result_action="return_value")

    if common.watch is None:
        return once()
    from gateway.cli.watching import again_and_again

    return again_and_again(once, common.watch, changes=isinstance(common, Changes), as_json=common.json)


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("farebox")
    except PackageNotFoundError:
        return "from a checkout"  # Run in place, without an installation.
