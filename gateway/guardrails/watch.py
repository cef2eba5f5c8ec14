"""The guardrails of a process: what a request's visit needs, built once by `app.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from gateway.exchange import Inbound, Providers
from gateway.observe.notebook import Notebook
from gateway.schema import guardrail_reports
from gateway.till import GuardrailSettings

if TYPE_CHECKING:
    from gateway.admission import Principal
    from gateway.guardrails.guard import Guard
    from gateway.guardrails.remote import Remotes
    from gateway.guardrails.visit import Asker, Report, Visit


class Watch:
    """Close with `aclose`. notebook: where what guardrails said is written down; None: nowhere. providers: None
    where no cloud can be asked."""

    def __init__(self, providers: Providers | None, settings: GuardrailSettings, notebook: Notebook | None) -> None:
        self._providers = providers
        self._settings = settings
        self._notebook = notebook
        self._remotes: Remotes | None = None

    async def aclose(self) -> None:
        if self._remotes is not None:
            await self._remotes.aclose()

    def visit(self, guard: Guard, who: Principal, inbound: Inbound, alias: str) -> Visit:
        from gateway.guardrails.visit import About, Visit  # Most requests have no guardrail.

        about = About(inbound.request_id, who.organisation_id, who.project_id, who.key_id, alias, inbound.now_ns)
        return Visit(guard, about, self._asker, self._report)

    async def texts(
        self, guard: Guard, who: Principal, inbound: Inbound, alias: str, texts: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Of a request that is no conversation. Raises: Blocked."""
        with self.visit(guard, who, inbound, alias) as visit:
            return await visit.asked_texts(visit.texts(texts))

    def trial(self, guard: Guard, report: Callable[[Report], None]) -> Visit:
        """Of a text that an administrator tries: nothing is written down."""
        from gateway.guardrails.visit import About, Visit

        return Visit(guard, About("trial", "", "", "", "", 0), self._asker, report)

    def _asker(self) -> Asker:
        """Most guardrails ask nobody, and what asks is a tenth of a second to load."""
        if self._remotes is None:
            from gateway.guardrails.remote import Remotes

            self._remotes = Remotes(self._providers, self._settings)
        return self._remotes

    def _report(self, report: Report) -> None:
        from gateway.guardrails.store import report_row

        if self._notebook is not None:
            self._notebook.put("guardrail", guardrail_reports, partial(report_row, report))
