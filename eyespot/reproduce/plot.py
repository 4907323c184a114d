"""A dot plot as SVG text: one row an arm, one dot a seed, a bar at the mean, a tick at the random floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

LEFT, RIGHT, ROW, TOP, WIDTH = 190, 70, 30, 46, 720
INK, SOFT, DOT, MEAN = "#222222", "#999999", "#3b6fb6", "#c0392b"


def dot_plot(title: str, metric: str, arms: Mapping[str, Sequence[float]], floors: Mapping[str, float]) -> str:
    """SVG of the values of one metric.

    Args:
        arms: for each arm its values, one a seed.
        floors: for some arms the mean of the random floor.
    """
    numbers = [v for values in arms.values() for v in values] + list(floors.values())
    low, high = _range(numbers)

    def x(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    height = TOP + ROW * len(arms) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(12, 22, title, weight="bold"),
    ]
    for i, (name, values) in enumerate(arms.items()):
        parts += _row(TOP + ROW * i + ROW / 2, name, values, floors.get(name), x)
    parts += _axis(TOP + ROW * len(arms) + 6, low, high, metric, x)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _range(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = min(numbers), max(numbers)
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


def _row(y: float, name: str, values: Sequence[float], floor: float | None, x: Any) -> list[str]:
    mean = sum(values) / len(values)
    parts = [
        _text(LEFT - 10, y + 4, name, anchor="end"),
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#eeeeee"/>',
    ]
    if floor is not None:
        parts.append(
            f'<line x1="{x(floor)}" x2="{x(floor)}" y1="{y - 9}" y2="{y + 9}" stroke="{SOFT}" stroke-width="2"/>'
        )
    parts.append(f'<line x1="{x(mean)}" x2="{x(mean)}" y1="{y - 9}" y2="{y + 9}" stroke="{MEAN}" stroke-width="2"/>')
    parts += [f'<circle cx="{x(v)}" cy="{y}" r="4" fill="{DOT}" fill-opacity="0.75"/>' for v in values]
    parts.append(_text(WIDTH - RIGHT + 10, y + 4, f"{mean:.2f}"))
    return parts


def _tick(x: float, y: float, colour: str) -> str:
    return f'<line x1="{x}" x2="{x}" y1="{y - 9}" y2="{y + 9}" stroke="{colour}" stroke-width="2"/>'


def _axis(y: float, low: float, high: float, metric: str, x: Any) -> list[str]:
    parts = [f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="{INK}"/>']
    for i in range(5):
        value = low + (high - low) * i / 4
        parts.append(_text(x(value), y + 15, f"{value:.1f}", anchor="middle", size=11))
    legend = f"{metric}: one dot a seed, red the mean, grey random features"
    return [*parts, _text(LEFT, y + 31, legend, size=11, fill=SOFT)]


def _text(
    x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", size: int = 13, fill: str = INK
) -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}" font-size="{size}" fill="{fill}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'
