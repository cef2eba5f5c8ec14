"""Metering services are told of each request once under its id, in their own form, whatever is away or killed."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import exports
from billing.db import create_engine, reading, writing
from billing.journal import Journal
from billing.usage import Meter
from billing.worker import Worker
from gateway import exporting
from gateway.config import load
from gateway.config_parts import Secret
from gateway.till import ExportSettings
from tests.billing.make import AT_NS, BOOK, RECORD_SALE_PUSD, record
from tests.emulators.server import Emulator, Out, Request
from tests.gateway.cli.conftest import farebox, farebox_json

MINUTE_NS = 60 * 10**9


class Service(Emulator):
    """Counts each id once, as the three do; may be away, or refuse ids."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.counted: dict[str, dict[str, object]] = {}
        self.bad: set[str] = set()
        self.away = 0  # So many calls yet.
        self.deaf = 0  # So many calls are taken, and their answer is lost.

    async def handle(self, request: Request, out: Out) -> None:
        if self.away:
            self.away -= 1
            await out.whole(503, b"later")
            return
        assert request.headers["authorization"] == "Bearer token"
        status, events = getattr(self, f"_{self.kind}")(request)
        if any(event_id in self.bad for event_id in events):
            await out.whole(400, b"what is this")
            return
        known = [event_id for event_id in events if event_id in self.counted]
        if known and self.kind == "lago":
            said = {"error_details": {"0": {"transaction_id": ["value_already_exist"]}}}
            await out.json(422, said)
            return
        if known and self.kind == "stripe":
            await out.json(400, {"error": {"message": f"An event already exists with identifier {known[0]}."}})
            return
        self.counted |= events
        if self.deaf:
            self.deaf -= 1
            out.reset()
            return
        await out.whole(status, b"")

    def _openmeter(self, request: Request) -> tuple[int, dict[str, dict[str, object]]]:
        assert (request.path, request.headers["content-type"]) == (
            "/api/v1/events", "application/cloudevents-batch+json",
        )  # fmt: skip
        events = request.json()
        for event in events:
            assert event.keys() == {
                "specversion", "id", "source", "type", "time", "subject", "datacontenttype", "data",
            }  # fmt: skip
            assert (event["specversion"], event["source"], event["type"]) == ("1.0", "farebox", "llm_usage")
            assert event["time"] == "2026-11-18T11:06:40Z"
        return 204, {event["id"]: {"subject": event["subject"], **event["data"]} for event in events}

    def _lago(self, request: Request) -> tuple[int, dict[str, dict[str, object]]]:
        assert request.path == "/api/v1/events/batch"
        events = request.json()["events"]
        assert len(events) <= 100
        for event in events:
            assert (event["code"], event["timestamp"]) == ("llm_usage", "1795000000.000")
        return 200, {e["transaction_id"]: {"subject": e["external_subscription_id"], **e["properties"]} for e in events}

    def _stripe(self, request: Request) -> tuple[int, dict[str, dict[str, object]]]:
        assert request.path == "/v1/billing/meter_events"
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        assert form.keys() == {
            "event_name", "identifier", "timestamp", "payload[stripe_customer_id]", "payload[value]", "payload[model]",
        }  # fmt: skip
        assert (form["event_name"], form["timestamp"]) == ("llm_usage", "1795000000")
        assert request.headers["idempotency-key"] == form["identifier"]
        said = {"subject": form["payload[stripe_customer_id]"], "tokens": int(form["payload[value]"])}
        return 200, {form["identifier"]: said}


def to(service: Service) -> ExportSettings:
    return ExportSettings(kind=service.kind, token=Secret("token", {}), url=service.url, customers={"org_1": "cus_one"})  # type: ignore[arg-type]


@pytest.fixture
async def engine(fresh_database_url: str) -> AsyncIterator[AsyncEngine]:
    made = create_engine(fresh_database_url)
    yield made
    await made.dispose()


async def use(engine: AsyncEngine, folder: Path, count: int, first: int = 0) -> None:
    journal = Journal.open(folder, "gw")
    for number in range(first, first + count):
        await journal.settle(record(f"r{number}"))
    await journal.close()
    await Worker(folder, engine, BOOK, exports=("meter",)).ship_once()


async def run(engine: AsyncEngine, service: Service, now_ns: int = AT_NS) -> int:
    async with httpx.AsyncClient() as http:
        return await exporting.export(engine, http, "meter", to(service), lambda: now_ns)


async def waiting(engine: AsyncEngine) -> tuple[int, int]:
    async with reading(engine) as db:
        found = await exports.backlogs(db)
    return (found[0].waiting, found[0].failing) if found else (0, 0)


@pytest.mark.parametrize("kind", ["openmeter", "lago", "stripe"])
async def test_each_request_is_told_in_the_services_own_form(engine: AsyncEngine, tmp_path: Path, kind: str) -> None:
    await use(engine, tmp_path, 120)
    async with Service(kind) as service:
        assert await run(engine, service) == 120
        assert await run(engine, service) == 0
        assert service.counted.keys() == {f"r{n}" for n in range(120)}
        told = service.counted["r7"]
        assert (told["subject"], told["tokens"]) == ("cus_one", 110)
        if kind != "stripe":
            assert (told["input_tokens"], told["model"], told["charge_usd"]) == (90, "gpt-test", "0.00057")
            assert RECORD_SALE_PUSD == 570_000_000
            assert told["meters"] == {"input_tokens": 90, "output_tokens": 20, "requests": 1}
    assert await waiting(engine) == (0, 0)


@pytest.mark.parametrize("kind", ["openmeter", "lago", "stripe"])
async def test_what_was_taken_without_our_hearing_it_is_told_again_and_counted_once(
    engine: AsyncEngine, tmp_path: Path, kind: str
) -> None:
    await use(engine, tmp_path, 20)
    async with Service(kind) as service:
        service.deaf = 1 if kind != "stripe" else 20
        assert await run(engine, service) == 0
        assert len(service.counted) == 20
        assert await waiting(engine) == (20, 20)
        assert await run(engine, service) == 0  # Not at once.
        await use(engine, tmp_path, 5, first=20)
        assert await run(engine, service, AT_NS + MINUTE_NS) == 25
        assert len(service.counted) == 25
    assert await waiting(engine) == (0, 0)


@pytest.mark.parametrize("kind", ["openmeter", "lago", "stripe"])
async def test_one_that_is_refused_holds_up_no_other(engine: AsyncEngine, tmp_path: Path, kind: str) -> None:
    await use(engine, tmp_path, 40)
    async with Service(kind) as service:
        service.bad = {"r3", "r33"}
        assert await run(engine, service) == 38
        async with reading(engine) as db:
            (left,) = await exports.backlogs(db)
        assert (left.waiting, left.failing, left.problem) == (2, 2, "answered 400: what is this")
        # It may be mended there; it is asked ever less often until then.
        for minutes in (1, 2, 5, 10):
            await run(engine, service, AT_NS + minutes * MINUTE_NS)
        calls = len(service.requests)
        await run(engine, service, AT_NS + 11 * MINUTE_NS)
        assert len(service.requests) == calls
        service.bad = set()
        assert await run(engine, service, AT_NS + 200 * MINUTE_NS) == 2
        assert len(service.counted) == 40


async def test_a_service_that_is_away_is_left_alone_until_later(engine: AsyncEngine, tmp_path: Path) -> None:
    await use(engine, tmp_path, 250)
    async with Service("openmeter") as service:
        service.away = 1
        assert await run(engine, service) == 0
        assert len(service.requests) == 1
        assert await run(engine, service) == 150  # Those that were not in the batch that nobody took.
        assert await run(engine, service, AT_NS + MINUTE_NS) == 100
    assert await waiting(engine) == (0, 0)
    async with httpx.AsyncClient() as http:
        nobody = ExportSettings(kind="lago", token=Secret("t", {}), url="http://127.0.0.1:9")
        await use(engine, tmp_path, 1, first=900)
        assert await exporting.export(engine, http, "meter", nobody, lambda: AT_NS) == 0
    assert await waiting(engine) == (1, 1)


async def test_a_request_without_a_price_waits_for_it(engine: AsyncEngine, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "gw")
    await journal.settle(record("r1", quantities={Meter.PAGES: 1}))
    await journal.close()
    await Worker(tmp_path, engine, BOOK, exports=("meter",)).ship_once()
    async with reading(engine) as db:
        assert await exports.due(db, "meter", now_ns=AT_NS, most=10) == []
    assert await waiting(engine) == (1, 0)


async def test_what_was_there_before_can_be_told_too(engine: AsyncEngine, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "gw")
    for number in range(5):
        await journal.settle(record(f"old{number}", at_ns=AT_NS + number))
    await journal.close()
    await Worker(tmp_path, engine, BOOK).ship_once()
    assert await waiting(engine) == (0, 0)
    async with writing(engine) as db:
        assert await exports.enqueue_span(db, "meter", AT_NS + 1, AT_NS + 4) == 3
        assert await exports.enqueue_span(db, "meter", AT_NS, AT_NS + 4) == 1
    assert await waiting(engine) == (4, 0)


def test_by_the_command(tmp_path: Path) -> None:
    farebox("migrate", cwd=tmp_path)
    settings = "[exports.meter]\nkind = 'lago'\ntoken = 'env:LAGO'\n[exports.other]\nkind = 'stripe'\ntoken = 'x'\n"
    (tmp_path / "farebox.toml").write_text(settings)
    said = farebox_json("export", "status", cwd=tmp_path)["exports"]
    assert [(row["export"], row["kind"], row["waiting"]) for row in said] == [
        ("meter", "lago", 0),
        ("other", "stripe", 0),
    ]
    assert farebox_json("export", "again", "meter", "--since", "2026-11-01", cwd=tmp_path)["queued"] == 0
    nobody = farebox("export", "again", "nobody", "--since", "2026-11-01", cwd=tmp_path, check=2)
    assert "meter, other" in nobody.stderr
    assert "no day" in farebox("export", "again", "meter", "--since", "soon", cwd=tmp_path, check=2).stderr
    assert farebox_json("export", "usage", "--csv", "out.csv", cwd=tmp_path)["rows"] == 0
    assert (tmp_path / "out.csv").read_text().startswith("id,at_ns,")
    assert farebox_json("export", "usage", "--parquet", "out", cwd=tmp_path)["files"] == []
    farebox("export", "usage", cwd=tmp_path, check=2)
    farebox("export", "usage", "--csv", "no/such/folder.csv", cwd=tmp_path, check=1)
    missing = load(tmp_path / "farebox.toml", environ={}).missing_secrets()
    assert [error.path for error in missing] == ["exports.meter.token"]
    assert json.dumps(farebox_json("config", "show", cwd=tmp_path)).count("env:LAGO") == 1
