"""What personal data and credentials look like. Where a kind has a checksum that decides; looks find candidates alone.

Source: ISO/IEC 7812-1 (card numbers, Luhn), ISO 13616 and SWIFT's IBAN registry, ITU-T E.164 (telephone numbers), the
key formats in each provider's console and documentation; read 2026-11."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import cache
from typing import Final

from gateway.guardrails.patterns import Detector, detector

_IBANS: Final = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27
GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27
MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SD18 SE24 SI19 SK24 SM27 ST25 SV28
TL23 TN24 TR26 UA29 VA22 VG24 XK20"""
_IBAN_CHARS: Final = {country[:2]: int(country[2:]) for country in _IBANS.split()}


def is_card(text: str) -> int:
    """Luhn, 13 to 19 digits of a payment network's range."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or not 2 <= digits[0] <= 6 or len(set(digits)) == 1:
        return 0
    doubled = (d if n % 2 == 0 else d * 2 - 9 * (d > 4) for n, d in enumerate(reversed(digits)))
    return len(text) if sum(doubled) % 10 == 0 else 0


def is_iban(text: str) -> int:
    """As long as its country's are, with a remainder of 1 by 97. What stands behind it in the same letters is no part
    of it."""
    length, taken = _IBAN_CHARS.get(text[:2], 0), 0
    for at, char in enumerate(text):
        taken += char != " "
        if taken == length:
            if text[at + 1 : at + 2].strip():
                return 0
            plain = text[: at + 1].replace(" ", "")
            number = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
            return at + 1 if int(number) % 97 == 1 else 0
    return 0


def is_address(text: str) -> int:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text) if len(text) > 4 else 0


def _ours(name: str, pattern: str, good: Callable[[str], int] | None = None) -> Detector:
    return detector(name, pattern, trusted=True, good=good)


NAMES: Final = ("card", "email", "phone", "iban", "api_key", "ip")


@cache
def every() -> tuple[Detector, ...]:
    """Made on first use: most gateways have no guardrail."""
    return (
        _ours("card", r"(?<![\w.])[2-6](?:[ -]?[0-9]){12,18}(?![0-9])", good=is_card),
        _ours(
            "email",
            r"(?<![\w.+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,6}[A-Za-z]{2,24}(?![\w-])",
        ),
        _ours("phone", r"(?<![\w+])(?:\+|00)[1-9](?:[ .()/-]{0,2}[0-9]){7,14}(?![0-9])"),
        _ours("phone", r"(?<![\w+])\(?[2-9][0-9]{2}\)?[ .-]{1,2}[0-9]{3}[ .-][0-9]{4}(?![0-9])"),
        _ours("iban", r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])", good=is_iban),
        # Our own, OpenAI's and many others', then each cloud's; JSON Web Tokens; the first line of a private key.
        _ours("api_key", r"(?<![A-Za-z0-9])(?:fbx-|sk-|gsk_|csk-|xai-|hf_|pplx-|ya29\.)[A-Za-z0-9_-]{16,256}"),
        _ours("api_key", r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AIza)[A-Za-z0-9_-]{16,256}"),
        _ours("api_key", r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
        _ours("api_key", r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,400}\.[A-Za-z0-9_-]{8,400}\.[A-Za-z0-9_-]{8,150}"),
        _ours("api_key", r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"),
        _ours("ip", r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9])", good=is_address),
        _ours("ip", r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", good=is_address),
    )


def named(names: tuple[str, ...]) -> tuple[Detector, ...]:
    """Raises: ValueError."""
    for name in names:
        if name not in NAMES:
            raise ValueError(f"no detector {name!r}; there are {', '.join(NAMES)}")
    return tuple(each for each in every() if each.name in names)


def of_patterns(patterns: tuple[str, ...], name: str, *, ignore_case: bool) -> tuple[Detector, ...]:
    """Raises: ValueError naming the pattern and what to write instead."""
    made = []
    for pattern in patterns:
        try:
            made.append(detector(name, pattern, ignore_case=ignore_case))
        except ValueError as error:
            raise ValueError(f"{pattern!r}: {error}") from None
    return tuple(made)


PLACEHOLDER: Final = re.compile(r"[^A-Za-z0-9_ -]")


def placeholder(name: str) -> str:
    """What stands in place of a match. No quote, backslash or bracket of JSON's within: it must fit into a string."""
    return f"[{PLACEHOLDER.sub('', name).upper() or 'REDACTED'}]"
