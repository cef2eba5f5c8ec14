"""What a provider says that it counted and charged: usage exports and APIs, read into one form. Pure.

Read: the JSON of OpenAI's usage and costs API and of Anthropic's usage and cost report, and CSV files with a heading
that names day, model and at least one count or cost: the consoles of OpenAI, Anthropic and Groq, AWS Cost and Usage
Reports (both spellings), Azure cost exports, GCP billing exports, and FOCUS, which all three clouds write too. Rows of
GCP's export to BigQuery are read as JSON, in a list or one a line.
Source: OpenAI "Usage" and "Costs" API reference, Anthropic "Usage and Cost" Admin API, AWS CUR data dictionary, Azure
cost details file schema, GCP standard usage cost export, FOCUS 1.2, read 2026-11.
"""

import csv
import datetime
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from billing.money import PUSD_PER_USD


class BillLine(msgspec.Struct, frozen=True):
    """One model on one day. None: this export does not say. Input includes cached tokens. A cost finer than 1 pUSD is
    rounded to the nearest."""

    day: str
    model: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_pusd: int | None = None


# What columns are called, in lower case without punctuation. Several of one kind in a row are added up.
_DAY: Final = frozenset({"date", "day", "usagedate", "usagedateutc", "starttime", "startingat", "timestamp",
                         "lineitemusagestartdate", "usagestarttime", "starttimeiso", "localtime",
                         "chargeperiodstart"})  # fmt: skip
_MODEL: Final = ("model", "modelversion", "modelname", "snapshotid", "productmodel", "skudescription", "metername",
                 "lineitemusagetype", "lineitem", "skumeter", "chargedescription", "description")  # fmt: skip
_INPUT: Final = frozenset({"inputtokens", "prompttokens", "contexttokens", "ncontexttokenstotal", "tokensin",
                           "contexttokenstotal"})  # fmt: skip
# Those that leave cached tokens out of the input, and what has to be added then.
_INPUT_PARTS: Final = frozenset({"usageinputtokensnocache", "uncachedinputtokens", "usageinputtokenscachewrite5m",
                                 "usageinputtokenscachewrite1h", "usageinputtokenscacheread", "cachereadinputtokens",
                                 "cachecreationinputtokens", "ephemeral5minputtokens",
                                 "ephemeral1hinputtokens"})  # fmt: skip
_OUTPUT: Final = frozenset({"outputtokens", "completiontokens", "generatedtokens", "usageoutputtokens",
                            "ngeneratedtokenstotal", "generatedtokenstotal", "tokensout"})  # fmt: skip
_COST: Final = ("costusd", "costinusd", "lineitemunblendedcost", "costinbillingcurrency", "amountvalue", "cost",
                "costusdollars", "amountusd", "billedcost")  # fmt: skip

_WORDS: Final = re.compile(r"[^a-z0-9]")


def read_bill(data: bytes) -> list[BillLine]:
    """Raises: ValueError for what is none of the known forms, saying what is missing."""
    text = data.decode("utf-8-sig", "strict")
    entries = _from_json(data) if text.lstrip()[:1] in ("{", "[") else _from_table(csv.reader(io.StringIO(text)))
    return _add_up(entries)


def _add_up(entries: Iterable[BillLine]) -> list[BillLine]:
    found: defaultdict[tuple[str, str], list[BillLine]] = defaultdict(list)
    for entry in entries:
        found[(entry.day, entry.model)].append(entry)
    return [
        BillLine(
            day,
            model,
            _sum(line.input_tokens for line in lines),
            _sum(line.output_tokens for line in lines),
            _sum(line.cost_pusd for line in lines),
        )
        for (day, model), lines in sorted(found.items())
    ]


def _sum(numbers: Iterable[int | None]) -> int | None:
    said = [number for number in numbers if number is not None]
    return sum(said) if said else None


def _from_json(data: bytes) -> Iterator[BillLine]:
    """Buckets of time with results: both APIs have this form; so have pages of them in a list. Or rows, each an
    object, as databases export them."""
    decoder = msgspec.json.Decoder(float_hook=Decimal)
    try:
        pages = decoder.decode(data)
    except msgspec.DecodeError as error:
        try:
            pages = [decoder.decode(line) for line in data.splitlines() if line.strip()]
        except msgspec.DecodeError:
            raise ValueError(f"not JSON: {error}") from error
    found = pages if isinstance(pages, list) else [pages]
    if found and all(isinstance(row, dict) and _DAY.intersection(_plain(name) for name in row) for row in found):
        yield from _from_table(_table(found))
        return
    for page in found:
        buckets = page.get("data") if isinstance(page, dict) else None
        if not isinstance(buckets, list):
            raise ValueError("no `data` with buckets of time in it: neither OpenAI's nor Anthropic's usage")
        for bucket in buckets:
            start = bucket.get("start_time", bucket.get("starting_at"))
            if start is None or not isinstance(bucket.get("results"), list):
                raise ValueError("a bucket without its time or its results")
            for result in bucket["results"]:
                if (line := _result(_day_of(str(start)), result)) is not None:
                    yield line


def _result(day: str, result: Mapping[str, Any]) -> BillLine | None:
    model = result.get("model")
    amount = result.get("amount")
    if amount is not None:  # A cost. OpenAI's in dollars, within an object; Anthropic's in cents, as text.
        dollars = amount["value"] if isinstance(amount, dict) else Decimal(amount) / 100
        currency = amount.get("currency") if isinstance(amount, dict) else result.get("currency", "USD")
        _check_currency(currency)
        model = model or str(result.get("line_item") or result.get("description") or "").partition(",")[0]
        return BillLine(day, model or "?", cost_pusd=_pusd(Decimal(dollars)))
    if model is None:
        raise ValueError("usage that does not say of which model; ask for it with group_by=model")
    if "uncached_input_tokens" in result:
        written = result.get("cache_creation") or {}
        read = sum(int(result.get(name) or 0) for name in ("uncached_input_tokens", "cache_read_input_tokens"))
        return BillLine(day, model, read + sum(map(int, written.values())), int(result["output_tokens"]))
    return BillLine(day, model, int(result.get("input_tokens") or 0), int(result.get("output_tokens") or 0))


def _table(objects: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """As rows under a heading: what lies within an object goes by both names, as sku.description."""
    flat = [
        {
            name if inner is None else f"{name}.{inner}": part
            for name, value in each.items()
            for inner, part in (value.items() if isinstance(value, dict) else ((None, value),))
        }
        for each in objects
    ]
    heading = list(dict.fromkeys(name for each in flat for name in each))
    yield heading
    for each in flat:
        yield ["" if each.get(name) is None else str(each[name]) for name in heading]


def _plain(name: str) -> str:
    return _WORDS.sub("", name.lower())


def _from_table(rows: Iterator[list[str]]) -> Iterator[BillLine]:
    heading = [_plain(name) for name in next(rows, [])]
    day = next((i for i, name in enumerate(heading) if name in _DAY), None)
    model = next((heading.index(name) for name in _MODEL if name in heading), None)
    cost = next((heading.index(name) for name in _COST if name in heading), None)
    whole, parts, output = (
        [i for i, name in enumerate(heading) if name in names] for names in (_INPUT, _INPUT_PARTS, _OUTPUT)
    )
    if day is None or model is None or (cost is None and not output):
        raise ValueError(f"no columns for day, model, and tokens or cost in: {', '.join(heading)}")
    currency = next((i for i, n in enumerate(heading) if n in ("currency", "billingcurrency", "lineitemcurrencycode",
                                                               "amountcurrency")), None)  # fmt: skip
    product = next((heading.index(n) for n in _PRODUCT if n in heading), None)
    inputs = whole or parts
    for row in rows:
        if len(row) < len(heading):
            continue  # An empty line, or the total that some exports end with.
        if product is not None and not _MODELS_OF.search(row[product]):
            continue
        if currency is not None and cost is not None:
            _check_currency(row[currency])
        yield BillLine(
            _day_of(row[day]),
            row[model],
            sum(_count(row[i]) for i in inputs) if inputs else None,
            sum(_count(row[i]) for i in output) if output else None,
            None if cost is None else _pusd(_number(row[cost])),
        )


# Which of a cloud's services a line is of, and those that run models.
_PRODUCT: Final = ("lineitemproductcode", "consumedservice", "servicename", "servicedescription")
_MODELS_OF: Final = re.compile(
    "bedrock|sagemaker|cognitive|machinelearning|openai|foundry|vertex|gemini|generative|claude", re.IGNORECASE
)


def _day_of(said: str) -> str:
    """A day in UTC from seconds since 1970, an ISO time, or 11/23/2026 as Azure writes it. Raises: ValueError."""
    text = said.strip()
    if text.isdecimal() and len(text) >= 9:
        return datetime.datetime.fromtimestamp(int(text), datetime.UTC).date().isoformat()
    if american := re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})", text):
        return datetime.date(int(american[3]), int(american[1]), int(american[2])).isoformat()
    time = datetime.datetime.fromisoformat(text.removesuffix(" UTC"))
    return (time.astimezone(datetime.UTC) if time.tzinfo else time).date().isoformat()


def _number(text: str) -> Decimal:
    try:
        return Decimal(text.replace(",", "").lstrip("$").strip() or "0")
    except InvalidOperation:
        raise ValueError(f"not a number: {text!r}") from None


def _count(text: str) -> int:
    return int(_number(text))


def _pusd(dollars: Decimal) -> int:
    return round(dollars * PUSD_PER_USD)


def _check_currency(currency: object) -> None:
    if str(currency).upper() != "USD":
        raise ValueError(f"costs in {currency}; only US dollars can be compared")
