"""What `promtool check rules` would say of an expression, and more: that its labels are on the metrics it names, that a
rate is of a counter, and which labels are left of it. The grammar is a port of Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import promql_parser
from promql_parser import AggModifierType, AggregateExpr, BinaryExpr, Call, MatrixSelector, ParenExpr, VectorSelector

COUNTED = {"rate", "irate", "increase"}
PICK = {"topk", "bottomk"}
ADDED = {"instance", "job"}
"""Labels that Prometheus adds to what it scrapes."""
Families = Mapping[str, tuple[str, frozenset[str]]]
"""By sample name: the type of its family, and its labels."""


def labels_left(text: str, known: Families) -> set[str]:
    """Which labels a result of this expression has. Raises: ValueError that says what is wrong."""
    return _of(promql_parser.parse(text), known)


def _of(expression: object, known: Families) -> set[str]:
    match expression:
        case VectorSelector():
            return _selected(expression, known, lambda _: True)
        case MatrixSelector():
            return _selected(expression.vector_selector, known, lambda _: True)
        case ParenExpr():
            return _of(expression.expr, known)
        case AggregateExpr():
            inside = _of(expression.expr, known)
            said = expression.modifier
            if said is None:
                # These pick some of what is there; the others make one of all.
                return inside if str(expression.op) in PICK else set()
            if unknown := set(said.labels) - inside:
                raise ValueError(f"{expression.op} by {sorted(unknown)}, which are not there")
            return set(said.labels) if said.type == AggModifierType.By else inside - set(said.labels)
        case BinaryExpr():
            left, right = (_of(each, known) for each in (expression.lhs, expression.rhs))
            # A number on one side has no labels; otherwise the two sides find each other by all of theirs.
            if left and right and left != right and expression.modifier is None:
                raise ValueError(f"{sorted(left)} never meet {sorted(right)}")
            return left or right
        case Call():
            counted = expression.func.name in COUNTED
            found: set[str] = set()
            for argument in expression.args:
                if isinstance(argument, MatrixSelector):
                    found |= _selected(argument.vector_selector, known, lambda kind: (kind != "gauge") is counted)
                else:
                    found |= _of(argument, known)
            if expression.func.name == "histogram_quantile":
                if "le" not in found:
                    raise ValueError("a quantile of what has no buckets")
                found -= {"le"}
            return found
    return set()


def _selected(selector: VectorSelector, known: Families, fits: Callable[[str], bool]) -> set[str]:
    if selector.name not in known:
        raise ValueError(f"nobody tells {selector.name}")
    kind, labels = known[selector.name]
    if not fits(kind):
        raise ValueError(f"{selector.name} is a {kind}")
    if unknown := {each.name for each in selector.matchers.matchers} - labels - ADDED:
        raise ValueError(f"{selector.name} has no {sorted(unknown)}")
    return set(labels) | ADDED
