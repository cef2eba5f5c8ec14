"""The checker itself refuses what is wrong: a checker that takes everything would pass every rule."""

import pytest

from tests.deploy.promql import ADDED, labels_left

KNOWN = {
    "asked_total": ("counter", frozenset({"model", "outcome"})),
    "took_seconds_bucket": ("histogram", frozenset({"model", "le"})),
    "up": ("gauge", frozenset({"what"})),
}


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        ("up == 0", {"what", *ADDED}),
        ("min by (instance) (up{what='redis'}) == 0", {"instance"}),
        (
            "sum by (model) (rate(asked_total{outcome=~'a|b'}[5m])) / sum by (model) (rate(asked_total[5m]))",
            {"model"},
        ),
        ("histogram_quantile(0.9, sum by (le, model) (rate(took_seconds_bucket[5m])))", {"model"}),
        ("sum(increase(asked_total[1h]))", set()),
        ("min_over_time(up[5m])", {"what", *ADDED}),
        ("bottomk(3, sum by (model) (rate(asked_total[5m])))", {"model"}),
        ("sum without (outcome) (rate(asked_total[5m]))", {"model", *ADDED}),
    ],
)
def test_good_ones_leave_these_labels(expression: str, left: set[str]) -> None:
    assert labels_left(expression, KNOWN) == left


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("sum(rate(asked_total[5m])", "unclosed"),
        ("rat(asked_total[5m])", "unknown function"),
        ("rate(asked_total)", "expected type matrix"),
        ("rate(up[5m])", "is a gauge"),
        ("max_over_time(asked_total[5m])", "is a counter"),
        ("asked", "nobody tells"),
        ("up{which='redis'}", "has no"),
        ("sum by (provider) (rate(asked_total[5m]))", "not there"),
        ("histogram_quantile(0.9, rate(asked_total[5m]))", "no buckets"),
        ("sum by (model) (rate(asked_total[5m])) / sum by (outcome) (rate(asked_total[5m]))", "never meet"),
    ],
)
def test_bad_ones_are_refused(expression: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        labels_left(expression, KNOWN)
