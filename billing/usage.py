"""What a request used: meters, the intent written before the call and the record written after it."""

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Final

import msgspec


class Meter(StrEnum):
    """One thing that is counted and priced. No meter overlaps another: a token stands under exactly one of them."""

    INPUT_TOKENS = "input_tokens"  # Text, neither read from nor written to a cache.
    CACHE_READ_TOKENS = "cache_read_tokens"
    CACHE_WRITE_5M_TOKENS = "cache_write_5m_tokens"  # Also where a provider does not say for how long.
    CACHE_WRITE_1H_TOKENS = "cache_write_1h_tokens"
    INPUT_AUDIO_TOKENS = "input_audio_tokens"
    CACHE_READ_AUDIO_TOKENS = "cache_read_audio_tokens"
    INPUT_IMAGE_TOKENS = "input_image_tokens"
    CACHE_READ_IMAGE_TOKENS = "cache_read_image_tokens"
    INPUT_VIDEO_TOKENS = "input_video_tokens"
    OUTPUT_TOKENS = "output_tokens"  # Text that is not reasoning.
    REASONING_TOKENS = "reasoning_tokens"
    CITATION_TOKENS = "citation_tokens"
    OUTPUT_AUDIO_TOKENS = "output_audio_tokens"
    OUTPUT_IMAGE_TOKENS = "output_image_tokens"
    OUTPUT_VIDEO_TOKENS = "output_video_tokens"
    REQUESTS = "requests"
    SEARCHES = "searches"
    FILE_SEARCHES = "file_searches"
    CHARACTERS = "characters"
    SECONDS = "seconds"
    IMAGES = "images"
    SEARCH_UNITS = "search_units"  # Of reranking: a query with up to a hundred documents.
    PAGES = "pages"
    ANNOTATED_PAGES = "annotated_pages"


INPUT_METERS: Final = frozenset(
    {
        Meter.INPUT_TOKENS,
        Meter.CACHE_READ_TOKENS,
        Meter.CACHE_WRITE_5M_TOKENS,
        Meter.CACHE_WRITE_1H_TOKENS,
        Meter.INPUT_AUDIO_TOKENS,
        Meter.CACHE_READ_AUDIO_TOKENS,
        Meter.INPUT_IMAGE_TOKENS,
        Meter.CACHE_READ_IMAGE_TOKENS,
        Meter.INPUT_VIDEO_TOKENS,
    }
)
OUTPUT_METERS: Final = frozenset(
    {
        Meter.OUTPUT_TOKENS,
        Meter.REASONING_TOKENS,
        Meter.CITATION_TOKENS,
        Meter.OUTPUT_AUDIO_TOKENS,
        Meter.OUTPUT_IMAGE_TOKENS,
        Meter.OUTPUT_VIDEO_TOKENS,
    }
)


def _total(meters: frozenset[Meter], quantities: Mapping[Meter, int]) -> int:
    total = 0
    for meter, quantity in quantities.items():  # no generator: this is asked six times of every request
        if meter in meters:
            total += quantity
    return total


input_tokens_total: Final = partial(_total, INPUT_METERS)
"""Every token that went in, whatever its kind: what context tiers and reports go by."""
output_tokens_total: Final = partial(_total, OUTPUT_METERS)
"""Every token that came out, reasoning included."""


class Outcome(StrEnum):
    """How a request ended. Any of them may carry a charge: a gone client's tokens were still produced."""

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"
    UPSTREAM_FAILED = "upstream_failed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"  # The provider refused it: nothing was produced.
    KILLED = "killed"  # The gateway died between intent and settlement.


# Both are written as arrays with a tag: a journal frame stays below 400 bytes. New fields go to the end, with a
# default: an older reader ignores what it does not know, a newer one fills in what is not there.


class Intent(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="intent"):
    """A request that has been admitted and is about to be sent upstream. Its id becomes the id of its UsageRecord.

    `estimate` is the worst case that was reserved, `hold_pusd` its sale price."""

    id: str
    at_ns: int
    organisation_id: str
    project_id: str
    key_id: str
    end_user: str | None
    alias: str
    provider: str
    model: str
    deployment: str
    price_id: str
    estimate: dict[Meter, int]
    hold_pusd: int
    dialect: str = ""
    tags: tuple[str, ...] = ()
    variant: str = ""  # Of the price that was reserved.


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="usage"):
    """One finished request. Exactly one exists per Intent; `estimated` when no provider said what was used."""

    id: str
    at_ns: int
    organisation_id: str
    project_id: str
    key_id: str
    end_user: str | None
    alias: str
    provider: str
    model: str
    deployment: str
    price_id: str
    quantities: dict[Meter, int]
    estimated: bool
    outcome: Outcome
    hold_pusd: int
    finish_reason: str | None = None
    first_token_ms: int | None = None
    duration_ms: int | None = None
    status: int | None = None  # As the client saw it; None when nobody was left to see one.
    dialect: str = ""
    tags: tuple[str, ...] = ()
    attempts: int = 1
    upstream_id: str | None = None  # The provider's own id, by which its bill can be matched.
    # billing.prices.variant_of what the provider answered. A record whose price is of another variant waits for one.
    variant: str = ""
    # What the gateway had to choose from and what it tried, in its own words; None where there was nothing to tell.
    way: str | None = None


class OrphanPolicy(StrEnum):
    """What an intent without a settlement costs. The provider bills us for what it had produced; nobody knows it."""

    WHOLE_ESTIMATE = "whole_estimate"  # Nothing that was reserved is handed back: never below what we owe.
    INPUT_ONLY = "input_only"  # The prompt has surely been read; the answer is on the house.
    WAIVE = "waive"


def settle_orphan(intent: Intent, policy: OrphanPolicy) -> UsageRecord:
    """The record of a request whose gateway died before it could write one."""
    quantities = {
        meter: quantity
        for meter, quantity in intent.estimate.items()
        if policy is OrphanPolicy.WHOLE_ESTIMATE or (policy is OrphanPolicy.INPUT_ONLY and meter not in OUTPUT_METERS)
    }
    return UsageRecord(
        id=intent.id,
        at_ns=intent.at_ns,
        organisation_id=intent.organisation_id,
        project_id=intent.project_id,
        key_id=intent.key_id,
        end_user=intent.end_user,
        alias=intent.alias,
        provider=intent.provider,
        model=intent.model,
        deployment=intent.deployment,
        price_id=intent.price_id,
        quantities=quantities,
        estimated=True,
        outcome=Outcome.KILLED,
        hold_pusd=intent.hold_pusd,
        dialect=intent.dialect,
        tags=intent.tags,
        variant=intent.variant,
    )
