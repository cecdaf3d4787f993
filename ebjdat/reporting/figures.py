"""Figures of the report pages: matplotlib's SVG, made fit for standing inside an HTML page.

Equal numbers give equal text. Colours are names that the page's style sheet fills, so that one figure
is readable on a light and on a dark page; identifiers carry the figure's name, so that many fit on
one page.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

INK = "#010203"
"""Stand-in for the page's text colour."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, which people with colour vision deficiencies can tell apart."""
MARKERS = "osD^vPX*<>hp"
DASHES = ("-", "--", "-.", ":")
SIZE = (4.8, 3.3)
"""Inches at 72 points each: readable at the width of a telephone."""

LARGER = 1.75
"""A picture in a file is shown by so much larger than in a page's columns."""

_STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "path.simplify": True,
}
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
_STYLE |= dict.fromkeys((*_INKED, "grid.color", "patch.edgecolor"), INK)


@dataclass(frozen=True, slots=True)
class Curve:
    """A line with an optional band: x, y and bounds of the same length."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A value with an optional interval, on a row of its own."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def curves(
    name: str,
    lines: Sequence[Curve],
    x_label: str,
    y_label: str,
    *,
    percent: bool = True,
    size: tuple[float, float] = SIZE,
) -> str:
    """Lines over a common axis as SVG; accuracies in [0, 1] are drawn in percent."""
    scale = 100.0 if percent else 1.0

    def draw(axes: Any) -> None:
        for place, line in enumerate(lines):
            colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
            y = scale * np.asarray(line.y, float)
            marker = MARKERS[place % len(MARKERS)] if len(line.x) <= 30 else ""
            axes.plot(line.x, y, dash, color=colour, marker=marker, label=line.label)
            if line.low is not None and line.high is not None:
                bounds = scale * np.asarray(line.low, float), scale * np.asarray(line.high, float)
                axes.fill_between(line.x, *bounds, color=colour, alpha=0.15, linewidth=0)
        if percent:
            axes.set_ylim(-2, 102)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(axes, len(lines))

    return svg(name, draw, size)


def histograms(name: str, kinds: Mapping[str, np.ndarray], x_label: str, bins: int = 40) -> str:
    """Distributions as steps over common bins: share of images, one colour and dash per kind."""
    edges = np.histogram_bin_edges(np.concatenate(list(kinds.values())), bins=bins)

    def draw(axes: Any) -> None:
        for place, (kind, values) in enumerate(kinds.items()):
            share = 100.0 * np.histogram(values, edges)[0] / len(values)
            colour = COLOURS[place % len(COLOURS)]
            axes.stairs(share, edges, color=colour, linestyle=DASHES[place % len(DASHES)], linewidth=1.5, label=kind)
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.12)
        axes.set_xlabel(x_label)
        axes.set_ylabel("share of images (%)")
        _legend(axes, len(kinds))

    return svg(name, draw, SIZE)


def intervals(
    name: str,
    groups: Mapping[str, Sequence[Point]],
    x_label: str,
    *,
    percent: bool = True,
    zero: bool = False,
) -> str:
    """Values with intervals, one row per label and one mark per group; rows of the first group come first.

    ``zero`` draws a line there, for differences.
    """
    labels = list(dict.fromkeys(point.label for points in groups.values() for point in points))
    scale, offset = (100.0 if percent else 1.0), 0.7 / max(len(groups), 1)

    def draw(axes: Any) -> None:
        for place, (group, points) in enumerate(groups.items()):
            for point in points:
                row = labels.index(point.label) + (place - (len(groups) - 1) / 2) * offset
                value = scale * point.value
                error = None
                if point.low is not None and point.high is not None:
                    error = [[max(value - scale * point.low, 0.0)], [max(scale * point.high - value, 0.0)]]
                first = point is points[0]
                style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
                label = group if first else None
                axes.errorbar([value], [row], xerr=error, linestyle="none", capsize=2, label=label, **style)
        if zero:
            axes.axvline(0.0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlabel(x_label)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="y", visible=False)
        _legend(axes, len(groups))

    return svg(name, draw, (SIZE[0], 1.0 + 0.3 * max(len(labels), 4)))


def svg(name: str, draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """What ``draw`` puts on the axes, as an ``<svg>`` element without any address in it.

    Args:
        name: prefix of all identifiers; a-z, 0-9 and hyphens, unique on the page.
        draw: gets matplotlib axes.
        size: inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.StringIO()
    style: Any = _STYLE | {"svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_alpha(0.0)
        axes.patch.set_alpha(0.0)
        draw(axes)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    return _embeddable(stream.getvalue(), name)


def _legend(axes: Any, entries: int) -> None:
    if entries > 1:
        columns = 1 if entries < 3 else 2
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, borderaxespad=0.2)


def _embeddable(text: str, name: str) -> str:
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    rest = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", rest, flags=re.DOTALL)
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', rest)
    rest = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", rest)
    for place, colour in enumerate(COLOURS):
        rest = rest.replace(colour, f"var(--c{place + 1})")
    rest = rest.replace(INK, "currentColor").replace("xlink:href=", "href=")
    rest = re.sub(r" font-family: [^;]+;", "", rest)  # the page's own
    return f'<svg {box[0] if box else ""} aria-hidden="true" focusable="false">{rest.strip()}'


def standalone(picture: str, title: str, description: str) -> str:
    """An element of this module as a file that any page can show: larger, own colours on white, the words inside."""
    for place, colour in enumerate(COLOURS):
        picture = picture.replace(f"var(--c{place + 1})", colour)
    match = re.match(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', picture)
    assert match is not None, "made by svg()"
    width, height = match[1], match[2]
    shown = f'width="{LARGER * float(width):g}" height="{LARGER * float(height):g}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {shown} '
        'role="img" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">\n'
        f"<title>{escape(title)}</title>\n<desc>{escape(description)}</desc>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
    )
    return head + picture[match.end() :].replace("currentColor", "#1f2328") + "\n"


def mosaic(images: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Images (rows, columns, C, H, W) uint8 as one PNG with labels, in a data address."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, across, channels, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 1)), constant_values=255)
    board = padded.transpose(0, 3, 1, 4, 2).reshape(count * (height + 1), across * (width + 1), channels)
    stream = io.BytesIO()
    with mpl.rc_context({"font.size": 7}):
        figure = Figure(figsize=(0.62 * across + 0.9, 0.62 * count + 0.35), dpi=110, layout="constrained")
        axes: Any = figure.add_subplot()
        shown = board[:, :, 0] if channels == 1 else board
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_yticks([(row + 0.5) * (height + 1) for row in range(len(rows))], rows)
        axes.set_xticks([(column + 0.5) * (width + 1) for column in range(len(columns))], columns)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return data_address(stream.getvalue())


def data_address(png: bytes) -> str:
    """A PNG as a ``data:`` address, which needs no file beside the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
