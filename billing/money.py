"""Amounts are integers in pUSD (10**-12 US dollar), the finest unit in which a token price is a whole number.

One dollar per million tokens is 10**6 pUSD a token; no float ever takes part.
"""

import re
from typing import Final

PUSD_PER_USD: Final = 10**12
FRACTION_DIGITS: Final = 12

# What one BIGINT column holds. Balances are wider (schema.WideAmount); one transfer above nine million dollars is not.
MAX_AMOUNT_PUSD: Final = 2**63 - 1

_AMOUNT = re.compile(r"(?P<sign>-?)\s*\$?\s*(?P<whole>[0-9]+)(?:\.(?P<fraction>[0-9]+))?\s*(?:usd)?", re.IGNORECASE)


def parse_usd(text: str) -> int:
    """Read "0.01usd", "$1.50", "1.5" or "-2 USD". Returns: pUSD, exactly.

    Raises: ValueError for anything else, and for a fraction finer than one pUSD: an amount is never rounded here."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not an amount in US dollars: {text!r}")
    fraction = (match["fraction"] or "").rstrip("0")
    if len(fraction) > FRACTION_DIGITS:
        raise ValueError(f"finer than 10**-12 US dollar: {text!r}")
    amount = int(match["whole"]) * PUSD_PER_USD + int(fraction.ljust(FRACTION_DIGITS, "0"))
    return -amount if match["sign"] else amount


def format_usd(pusd: int) -> str:
    """The exact decimal in dollars, without currency sign, cents at least: 1_500_000_000_000 -> "1.50"."""
    whole, fraction = divmod(abs(pusd), PUSD_PER_USD)
    digits = f"{fraction:012d}".rstrip("0").ljust(2, "0")
    return f"{'-' if pusd < 0 else ''}{whole}.{digits}"
