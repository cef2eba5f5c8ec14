"""What a request may cost at worst, before anybody knows what it costs. Pure but for the learned ratios."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil
from typing import Final

from msgspec import Struct

from billing.errors import UnknownPrice
from billing.prices import PriceSheet
from billing.rating import Counts, priced, rate
from billing.usage import Meter, input_tokens_total

# What a chat template, a default system prompt and tool scaffolding add to the shortest of requests.
OVERHEAD_TOKENS: Final = 64
# No tokenizer of the field spends more than one token on a byte of text, and none averages above eight bytes.
BYTES_PER_TOKEN_MIN: Final = 1.0
BYTES_PER_TOKEN_MAX: Final = 8.0
# Before a model's first answer: at worst two bytes a token (code, Thai, digits); likely four (English).
FIRST_WORST: Final = 2.0
FIRST_LIKELY: Final = 4.0
# An answer shorter than this is no answer; below it the request is refused instead of cut.
OUTPUT_TOKENS_MIN: Final = 16
# Tokens of a usual answer, before the model has given any.
FIRST_ANSWER: Final = 512.0

_ONE_REQUEST: Final[Mapping[Meter, int]] = {Meter.REQUESTS: 1}
_SHARE: Final = 0.05  # of the newest observation in the running averages
_SHORT_BYTES: Final = 256  # below this, the overhead says more than the text
_MODELS_MAX: Final = 10_000

# Tokens of one image at worst, the first pattern that matches the alias. Source: vision and pricing guides, and what
# users measured against them, read 2026-11: gpt-4o-mini 2,833 + 8 tiles x 5,667; OpenAI's other models at most 1,536
# patches x 2.46; Anthropic 4,784 since Opus 4.7, 1,568 before. Everybody else as the dearest of the usual.
_IMAGE_TOKENS: Final = (
    ("*gpt-4o-mini*", 48_169),
    ("*gpt*", 3_779),
    ("*", 4_784),
)


class Learned(Struct):
    """Running averages of one model: bytes in a token, how far they stray, tokens in an answer."""

    mean: float
    stray: float
    output: float


class Ratios:
    """Bytes per token of each model, learned from what providers count. Bounded: aliases come from clients."""

    def __init__(self) -> None:
        self._learned: OrderedDict[str, Learned] = OrderedDict()

    def learn(self, alias: str, input_bytes: int, input_tokens: int, output_tokens: int) -> None:
        """One finished request without images. Zero tokens mean that nobody counted, and teach nothing."""
        known = self._learned.get(alias)
        if known is None:
            if len(self._learned) >= _MODELS_MAX:
                self._learned.popitem(last=False)
            stray = (FIRST_LIKELY - FIRST_WORST) / 3
            known = self._learned[alias] = Learned(FIRST_LIKELY, stray, FIRST_ANSWER)
        if input_bytes >= _SHORT_BYTES and input_tokens > 0:
            ratio = _clamp(input_bytes / input_tokens)
            known.stray += _SHARE * (abs(ratio - known.mean) - known.stray)
            known.mean += _SHARE * (ratio - known.mean)
        if output_tokens > 0:
            known.output += _SHARE * (output_tokens - known.output)

    def worst_input(self, alias: str, input_bytes: int) -> int:
        """Tokens that hardly any prompt of this size exceeds: three mean deviations on the dear side."""
        known = self._learned.get(alias)
        ratio = FIRST_WORST if known is None else _clamp(known.mean - 3 * known.stray)
        return OVERHEAD_TOKENS + ceil(input_bytes / ratio)

    def likely_input(self, alias: str, input_bytes: int) -> int:
        """Tokens of a usual prompt of this size, for rate limits: those are put right within seconds."""
        known = self._learned.get(alias)
        return ceil(input_bytes / (FIRST_LIKELY if known is None else known.mean))  # the mean of what `learn` clamped

    def likely_output(self, alias: str) -> int:
        """Twice the usual answer."""
        known = self._learned.get(alias)
        return ceil(2 * (FIRST_ANSWER if known is None else known.output))


def _clamp(ratio: float) -> float:
    return max(BYTES_PER_TOKEN_MIN, min(BYTES_PER_TOKEN_MAX, ratio))


class Estimate(Struct, frozen=True):
    """The worst case of one request as a line: fixed + output tokens x price of the dearest plan entry.

    lines: (fixed pUSD, pUSD per output token) of each sheet; output tokens are of one candidate."""

    input_tokens: int
    candidates: int
    fixed: tuple[tuple[Meter, int], ...]
    lines: tuple[tuple[int, int], ...]

    def quantities(self, output_tokens: int) -> dict[Meter, int]:
        """The worst case in meters, as an intent writes it down."""
        quantities = dict(self.fixed)
        if output_tokens:
            quantities[Meter.OUTPUT_TOKENS] = output_tokens * self.candidates
        return quantities

    def hold_pusd(self, output_tokens: int) -> int:
        """What the dearest sheet asks for that much output."""
        return max([fixed + output_tokens * self.candidates * each for fixed, each in self.lines])

    def affordable_output(self, pusd: int) -> int | None:
        """The longest answer whose worst case costs no more than this. None when the price does not depend on it."""
        longest: int | None = None
        for fixed, each in self.lines:
            if each == 0:
                if fixed > pusd:
                    return 0
                continue
            fits = max(0, (pusd - fixed) // (each * self.candidates))
            longest = fits if longest is None else min(longest, fits)
        return longest


def estimate(
    ratios: Ratios,
    alias: str,
    *,
    input_bytes: int,
    images: int,
    candidates: int,
    context_window: int,
    sheets: Sequence[PriceSheet],
    extra: Mapping[Meter, int],
    answers: bool = True,
) -> Estimate:
    """The worst case over every price sheet that the request may end up with.

    Input counts as its dearest kind, since any of it may be written to a cache; output as text or reasoning, whichever
    is dearer. extra: what else the caller knows it may use (searches, seconds of sound). answers: whether the model can
    say anything at all.
    Raises: UnknownPrice if a sheet prices no output, no input, or nothing of `extra`."""
    input_tokens = ratios.worst_input(alias, input_bytes) + (images * image_tokens(alias) if images else 0)
    input_tokens = min(context_window, input_tokens)
    fixed: dict[Meter, int] = {Meter.INPUT_TOKENS: input_tokens, Meter.REQUESTS: 1}
    for meter, quantity in extra.items():
        fixed[meter] = fixed.get(meter, 0) + quantity
    reads = fixed[Meter.INPUT_TOKENS]
    others: Mapping[Meter, int] = _ONE_REQUEST
    if extra:
        others = {m: n for m, n in fixed.items() if m is not Meter.INPUT_TOKENS}
    lines = []
    for sheet in sheets:
        tier = sheet.tier(input_tokens)
        read = tier.read_at_most if reads else 0
        # Embeddings say nothing, and their lists price no output.
        said = tier.said_at_most if answers else 0
        what = f"{sheet.provider}/{sheet.model}"
        if read is None or said is None:
            raise UnknownPrice(what, Meter.INPUT_TOKENS if read is None else Meter.OUTPUT_TOKENS)
        lines.append((reads * read + rate(others, tier.sale, what), said))
    return Estimate(input_tokens, candidates, tuple(fixed.items()), tuple(lines))


def counted(counts: Counts, sheets: Sequence[PriceSheet]) -> Estimate:
    """The worst case of a request that is not sold by the tokens of a text (reranking, sound, images): the dearest of
    the sheets, each by the unit that it prices.

    Raises: UnknownPrice if a sheet prices none of them."""
    found: list[tuple[int, dict[Meter, int]]] = []
    for sheet in sheets:
        what = f"{sheet.provider}/{sheet.model}"
        quantities = priced(counts, sheet)
        if quantities is None:
            raise UnknownPrice(what, next(iter(counts[0])))
        tokens = input_tokens_total(quantities)
        found.append((rate(quantities, sheet.tier(tokens).sale, what), quantities))
    pusd, quantities = max(found, key=lambda each: each[0])
    return Estimate(input_tokens_total(quantities), 1, tuple(quantities.items()), ((pusd, 0),))


def fewest_tokens(input_bytes: int) -> int:
    """What a text of this size counts as with the longest tokens of the field."""
    return ceil(input_bytes / BYTES_PER_TOKEN_MAX)


def image_tokens(alias: str) -> int:
    """The most that one image may count for."""
    return next(tokens for pattern, tokens in _IMAGE_TOKENS if fnmatchcase(alias.lower(), pattern))
