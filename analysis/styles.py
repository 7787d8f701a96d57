"""How every picture looks: colours that colour-blind readers can tell apart, text that stays text, one size of type, NaN hatched and never imputed.

Colours: Okabe and Ito 2008. Colour is never the only cue: lines differ in dash, points in marker.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import UsageError, unknown
from landscape.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet
    from plotly.graph_objects import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000",
)  # fmt: skip
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
SEQUENTIAL = "viridis"
GREY = "#8a8a8a"
FORMATS = ("svg", "pdf", "png")
PANEL_INCHES = (
    4.6,
    3.4,
)  # two panels side by side fill a page's width (6.75 in) after scaling by 3/4: type stays above 6 pt


@contextlib.contextmanager
def house() -> Iterator[None]:
    """Draw in the house style; matplotlib's own settings are put back afterwards."""
    import matplotlib as mpl
    from cycler import cycler

    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 8,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=CYCLE),
        "axes.grid": False,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "pdf.fonttype": 42,  # text stays text
        "svg.fonttype": "none",
        "svg.hashsalt": "landscape",  # the same numbers give the same file
        "savefig.dpi": 200,
    }
    with mpl.rc_context(settings):
        yield


def sheet(result: Result) -> Sheet:
    """All panels of a result side by side, two a row: a page shows no more at a legible size. Call inside `house()`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    panels = result.panels()
    if not panels:
        raise UsageError(
            f"the answer of kind {result.kind!r} is a table and has no picture. Read it in the report, or with --json."
        )
    width, height = PANEL_INCHES
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = Sheet(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        result.plot(places.pop(0), panel)
    for ax in places:  # an odd number leaves one over
        ax.remove()
    return figure


def rendered(result: Result, format: str) -> bytes:
    """The picture of a result as the bytes of an SVG, PDF or PNG file."""
    if format not in FORMATS:
        raise unknown("picture format", format, FORMATS)
    buffer = io.BytesIO()
    with house():
        # no date: the same numbers give the same bytes
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[format]
        sheet(result).savefig(buffer, format=format, metadata=metadata)
    return buffer.getvalue()


def format_of(path: Path) -> str:
    """The format that a file name asks for. Raises UsageError on others, `.html` among them (that is the report's)."""
    name = path.suffix.lower().removeprefix(".")
    if name not in (*FORMATS, "html"):
        raise UsageError(f"cannot draw {path.name!r}: the name must end in .svg, .pdf, .png or .html (interactive).")
    return name


def interactive(figure: Figure, *, x: str, y: str) -> Figure:
    """Give a plotly figure the house style and axis titles."""
    figure.update_layout(
        template="simple_white",
        colorway=list(CYCLE),
        font={"size": 13},
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        legend={"orientation": "h", "y": 1.12, "x": 0},
        height=460,
    )
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def hatch_missing(ax: Axes, x: Any, y: Any, values: Any) -> int:
    """Hatch the cells of a grid `values` (y, x) that are not finite; returns how many there are."""
    import numpy as np
    from matplotlib.patches import Rectangle

    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        dx, dy = (x[1] - x[0], y[1] - y[0])
        for row, column in bad:
            ax.add_patch(
                Rectangle(
                    (x[column] - dx / 2, y[row] - dy / 2),
                    dx,
                    dy,
                    hatch="////",
                    fill=True,
                    facecolor="#dddddd",
                    edgecolor=GREY,
                    linewidth=0,
                )
            )
    return len(bad)


def heading(ax: Axes, title: str, handles: list[Any] | None = None, *, columns: int = 3, raised: float = 0.0) -> None:
    """The title, and below it the legend, above the axes, where no data are; `raised` points leave room for an axis on top."""
    from matplotlib.transforms import ScaledTranslation

    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    if handles:
        above = ax.transAxes + ScaledTranslation(0, raised / 72, ax.figure.dpi_scale_trans)
        legend = ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), bbox_transform=above, ncols=columns, fontsize=7, borderaxespad=0.2, handlelength=2.2, columnspacing=1.0)  # fmt: skip
        legend.set_in_layout(False)  # the title's distance leaves the room
    ax.set_title(title, loc="left", pad=raised + 5 + 12 * math.ceil(len(handles) / columns))


def borders(middles: np.ndarray) -> np.ndarray:
    """Borders halfway between neighbours; a single place has half a unit on both sides."""
    if len(middles) == 1:
        return np.array([middles[0] - 0.5, middles[0] + 0.5])
    inner = (middles[1:] + middles[:-1]) / 2
    ends = 2 * middles[[0, -1]] - inner[[0, -1]]
    return np.concatenate([ends[:1], inner, ends[1:]])
