"""What providers say in their headers of the limits that they hold us to."""

import pytest

from gateway.routing.quotas import RESET_S, quota_of

NOW, UNIX_S = 50.0, 1_795_392_000.0  # 2026-11-23, midnight UTC.


def openai(unit: str, limit: str, remaining: str, reset: str) -> dict[str, str]:
    said = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{name}-{unit}": value for name, value in said.items()}


def anthropic(unit: str, limit: str, remaining: str, reset: str) -> dict[str, str]:
    said = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"anthropic-ratelimit-{unit}-{name}": value for name, value in said.items()}


@pytest.mark.parametrize(("headers", "left", "reset_s"), [
    (openai("requests", "60", "59", "1s") | openai("tokens", "150000", "37500", "6m0s"), 0.25, 360),
    (openai("requests", "10", "1", "120ms"), 0.1, 0.12),
    (openai("requests", "10", "1", "1h2m3.5s"), 0.1, 3723.5),
    (openai("tokens", "10", "0", "7.66"), 0.0, 7.66),  # Groq and others: seconds alone
    (openai("tokens", "10", "5", ""), 0.5, RESET_S),
    (openai("tokens", "10", "20", "1s"), 1.0, 1),
    (
        anthropic("requests", "50", "49", "2026-11-23T00:00:30Z")
        | anthropic("input-tokens", "1000", "10", "2026-11-23T00:01:30Z"),
        0.01,
        90,
    ),
    (anthropic("requests", "50", "25", "2026-11-22T23:00:00Z"), 0.5, 0.001),
    (anthropic("requests", "50", "25", "soon"), 0.5, RESET_S),
])  # fmt: skip
def test_the_nearest_limit_counts(headers: dict[str, str], left: float, reset_s: float) -> None:
    quota = quota_of(headers, NOW, UNIX_S)
    assert quota is not None
    assert (quota.left, quota.reset_s, quota.at) == (pytest.approx(left), pytest.approx(reset_s), NOW)


@pytest.mark.parametrize("headers", [
    {},
    {"content-type": "application/json"},
    openai("requests", "0", "0", "1s"),
    openai("requests", "many", "1", "1s"),
    openai("requests", "nan", "1", "1s"),
    openai("requests", "10", "-1", "1s"),
    {"x-ratelimit-limit-requests": "10"},
])  # fmt: skip
def test_what_cannot_be_read_says_nothing(headers: dict[str, str]) -> None:
    assert quota_of(headers, NOW, UNIX_S) is None


def test_what_is_left_grows_back_evenly() -> None:
    quota = quota_of(openai("requests", "10", "2", "10s"), NOW, UNIX_S)
    assert quota is not None
    shares = {-5: 0.2, 0: 0.2, 5: 0.6, 10: 1.0, 11: 1.0}  # A clock that was set back takes nothing away.
    assert {after: quota.read(NOW + after) for after in shares} == pytest.approx(shares)
