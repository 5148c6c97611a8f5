"""Plots as SVG text, without a library: lines over a logarithmic axis, and bars. Everything that is shown is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 30, 44
_STEPS = (1, 2, 2.5, 5, 10)
_CHARACTER = 6.6  # pixels, of a letter

Series = Mapping[str, Sequence[tuple[float, float]]]  # name -> points


def lines(title: str, x: str, y: str, series: Series, show: Callable[[float], str]) -> str:
    """A line for each series; x is logarithmic and marked where there are points, y begins at 0. `show`: a value of y in words."""
    points = [point for given in series.values() for point in given]
    if not points:
        return ""
    marks = sorted({left for left, _ in points})
    top, step = _scale(max(value for _, value in points))
    low, high = math.log(marks[0]), math.log(marks[-1])

    def across(value: float) -> float:
        share = (math.log(value) - low) / (high - low) if high > low else 0.5
        return _LEFT + 12 + share * (_WIDTH - _LEFT - _RIGHT - 24)

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_WIDTH / 2, 16, title, "middle", bold=True), _text(_WIDTH / 2, _HEIGHT - 6, x, "middle"), _text(4, _TOP - 8, y, "start")]
    for number in range(round(top / step) + 1):
        parts.append(_line(_LEFT, up(number * step), _WIDTH - _RIGHT, up(number * step), "#e5e7eb"))
        parts.append(_text(_LEFT - 6, up(number * step) + 4, show(number * step) if number else "0", "end"))
    parts += [_text(across(mark), _HEIGHT - _BOTTOM + 16, f"{mark:g}", "middle") for mark in marks]
    for (name, given), colour in zip(series.items(), _cycle(len(series)), strict=True):
        path = " ".join(f"{across(left):.1f},{up(value):.1f}" for left, value in sorted(given))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for left, value in given:
            tip = f"<title>{escape(f'{name}: {show(value)} at {left:g}')}</title>"
            parts.append(f'<circle cx="{across(left):.1f}" cy="{up(value):.1f}" r="3.5" fill="{colour}">{tip}</circle>')
    return _svg(_HEIGHT, parts, title) + legend(list(series))


def bars(title: str, values: Sequence[tuple[str, float, str]]) -> str:
    """A bar for each (name, value, label), to the right of a middle line where the value is above 0, else to its left."""
    if not values:
        return ""
    most = max(abs(value) for _, value, _ in values) or 1.0
    names = min(300.0, max(len(name) for name, _, _ in values) * _CHARACTER + 8)
    below, above = any(value < 0 for _, value, _ in values), any(value > 0 for _, value, _ in values)
    room = _WIDTH - names - 2 * 60
    zero = names + 60 + (room / 2 if below and above else room if below else 0)
    scale = (room / 2 if below and above else room) / most
    height = _TOP + 24 * len(values) + 10
    parts = [_text(_WIDTH / 2, 16, title, "middle", bold=True), _line(zero, _TOP - 4, zero, height - 6, "#9ca3af")]
    for number, (name, value, label) in enumerate(values):
        top, length = _TOP + 24 * number, abs(value) * scale
        left = zero - length if value < 0 else zero
        parts.append(_text(names, top + 13, name, "end"))
        parts.append(f'<rect x="{left:.1f}" y="{top}" width="{length:.1f}" height="17" fill="{COLOURS[1] if value < 0 else COLOURS[0]}"/>')
        parts.append(_text(left - 4 if value < 0 else left + length + 4, top + 13, label, "end" if value < 0 else "start"))
    return _svg(height, parts, title)


def stacks(title: str, kinds: Sequence[str], values: Sequence[tuple[str, Sequence[float], str]]) -> str:
    """A bar for each (name, parts, label), its parts one after the other; `kinds` names the parts."""
    if not values:
        return ""
    most = max(sum(parts) for _, parts, _ in values) or 1.0
    names = min(300.0, max(len(name) for name, _, _ in values) * _CHARACTER + 8)
    height = _TOP + 24 * len(values) + 10
    made = [_text(_WIDTH / 2, 16, title, "middle", bold=True)]
    for number, (name, amounts, label) in enumerate(values):
        top, left = _TOP + 24 * number, names + 6
        made.append(_text(names, top + 13, name, "end"))
        for amount, colour in zip(amounts, _cycle(len(amounts)), strict=True):
            width = amount / most * (_WIDTH - names - 90)
            made.append(f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="17" fill="{colour}"/>')
            left += width
        made.append(_text(left + 4, top + 13, label, "start"))
    return _svg(height, made, title) + legend(kinds)


def legend(names: Sequence[str]) -> str:
    """What the colours mean."""
    entries = zip(names, _cycle(len(names)), strict=True)
    return '<p class="legend">' + " ".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in entries) + "</p>"


def _cycle(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _scale(most: float) -> tuple[float, float]:
    """The end of an axis that shows values up to `most`, and the distance of its marks: about five."""
    if most <= 0:
        return 1.0, 0.25
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in _STEPS if size * power >= rough * 0.999)
    return step * math.ceil(most / step * 0.999), step


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}" xmlns="http://www.w3.org/2000/svg">'
    return head + "".join(parts) + "</svg>"
