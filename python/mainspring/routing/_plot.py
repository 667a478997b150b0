"""A line plot as SVG, without a plotting library.

Invariant: the same curves make the same picture. Reading starts at `plot`.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LineData = tuple[str, Floats, Floats]

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 55
COLOURS = ("#0b6e99", "#c4570a", "#2f7d32", "#8a3ffc", "#777777", "#b00020")
POINTS_MAX = 200
"""Points drawn of one curve."""


def plot(curves: Sequence[LineData], *, x_label: str, y_label: str) -> str:
    """Draws curves over 0 to 1.

    Args:
        curves: Name, x (ascending, 0 to 1) and y of each.
        x_label: What is on the horizontal axis.
        y_label: What is on the vertical axis.
    """
    low, high = _range(curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *_axes(low, high, x_label, y_label),
    ]
    for idx, (name, x, y) in enumerate(curves):
        colour = COLOURS[idx % len(COLOURS)]
        at = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS_MAX)).astype(int))
        points = " ".join(f"{_x(float(x[i])):.1f},{_y(float(y[i]), low, high):.1f}" for i in at)
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'
        )
        top = HEIGHT - BOTTOM - 14 - 18 * (len(curves) - 1 - idx)
        left = WIDTH - RIGHT - 210
        parts.append(
            f'<line x1="{left}" y1="{top - 4}" x2="{left + 24}" y2="{top - 4}" stroke="{colour}" '
            f'stroke-width="3"/><text x="{left + 32}" y="{top}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _range(curves: Sequence[LineData]) -> tuple[float, float]:
    values = np.concatenate([y for _, _, y in curves]) if curves else np.array([0.0, 1.0])
    low, high = float(values.min()), float(values.max())
    margin = max(0.05 * (high - low), 0.005)
    return low - margin, high + margin


def _axes(low: float, high: float, x_label: str, y_label: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for share in np.linspace(0.0, 1.0, 6):
        at = _x(float(share))
        parts.append(
            f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}" stroke="#e3e3e3"/>'
        )
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{share:.0%}</text>'
        )
    for value in np.linspace(low, high, 6):
        at = _y(float(value), low, high)
        parts.append(
            f'<line x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="#e3e3e3"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(
        f'<text x="{middle_x:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(18 {middle_y:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
