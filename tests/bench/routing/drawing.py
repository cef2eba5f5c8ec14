"""Outcomes as one SVG: a panel for each number of replicas, mix and load, a bar for each rule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tests.bench.routing.simulation import Outcome

PANEL_W, PANEL_H, BAR_H, LEFT, RIGHT = 300, 172, 18, 88, 128
COLUMNS = 3


def drawn(outcomes: Sequence[Outcome]) -> str:
    """Bars are mean first-token times, each panel on its own scale; the line across them is what no router can beat."""
    panels = [list(group) for _, group in groupby(outcomes, key=lambda o: (o.replicas, o.mix, o.load))]
    placed = [
        f'<g transform="translate({at % COLUMNS * PANEL_W},{at // COLUMNS * PANEL_H})">{panel(group)}</g>'
        for at, group in enumerate(panels)
    ]
    height = -(-len(panels) // COLUMNS) * PANEL_H
    size = f'width="{COLUMNS * PANEL_W}" height="{height}" font-family="sans-serif" font-size="11"'
    # A page of its own colour, so that it reads in a dark viewer as well.
    page = f'<rect width="{COLUMNS * PANEL_W}" height="{height}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{page}{"".join(placed)}</svg>\n'


def panel(group: Sequence[Outcome]) -> str:
    most = max(o.first_token_s for o in group)
    scale = (PANEL_W - LEFT - RIGHT) / most
    first = group[0]
    rows = [f'<text x="8" y="18" font-weight="bold">{first.replicas} replicas, {first.mix}, {first.load}</text>']
    for at, o in enumerate(group):
        y = 28 + at * (BAR_H + 4)
        colour = "#1971c2" if o.rule == "ours" else "#adb5bd"
        refused = f", {o.refused:.0%} refused" if o.refused >= 0.005 else ""
        width, told = max(1.0, o.first_token_s * scale), f"{o.first_token_s * 1e3:,.0f} ms{refused}"
        rows.append(
            f'<text x="8" y="{y + 13}">{o.rule}</text>'
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR_H}" fill="{colour}"/>'
            f'<text x="{LEFT + width + 4:.1f}" y="{y + 13}" font-size="10">{told}</text>'
        )
    x, end = LEFT + first.bound_s * scale, 28 + len(group) * (BAR_H + 4)
    rows.append(f'<path d="M{x:.1f} 24V{end}" stroke="#e03131" stroke-dasharray="3 2"/>')
    return "".join(rows)
