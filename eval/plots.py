"""The plots of a run, as SVG or PNG. Nothing is shown and no global state of matplotlib is left changed.

Text becomes outlines, so that Chinese is seen on machines without its fonts; it needs a font that has it on the machine that draws.
Where there is none, such labels are written in ASCII.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from eval.calibration import Bin, Point
from eval.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which people with any colour vision can tell apart.
_COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_CJK: Final = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "SimHei",
)
_SIZE: Final = (6.4, 3.4)
Format = Literal["svg", "png"]


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn plot: `name` is part of a file name, `title` says what is shown."""

    name: str
    title: str
    format: Format
    data: bytes


def bars(title: str, means: Mapping[str, Interval], axis: str, format: Format = "svg") -> Plot:
    """A bar for each name with its mean and confidence interval."""

    def draw(axes: Axes) -> None:
        for place, (mean, low, high) in enumerate(means.values()):
            axes.bar(place, mean, color=_colour(place), width=0.7)
            axes.errorbar(place, mean, yerr=[[mean - low], [high - mean]], color="#333333", capsize=4, linewidth=1.2)
            axes.annotate(f"{mean:.2f}", (place, max(0.0, mean, high)), ha="center", va="bottom", fontsize=8)
        axes.set_xticks(range(len(means)), [_readable(name) for name in means])
        axes.axhline(0, color="#333333", linewidth=0.8)
        axes.set_ylabel(axis)

    return _drawn("bars", title, draw, format)


def plane(title: str, points: Mapping[str, tuple[float, Interval]], across: str, up: str, format: Format = "svg") -> Plot:
    """Each name where its cost (to the right) and its quality (up, with interval) put it."""

    def draw(axes: Axes) -> None:
        for place, (name, (cost, (mean, low, high))) in enumerate(points.items()):
            axes.errorbar(cost, mean, yerr=[[mean - low], [high - mean]], fmt="o", color=_colour(place), capsize=3)
            axes.annotate(_readable(name), (cost, mean), xytext=(6, 4), textcoords="offset points", fontsize=9)
        axes.margins(x=0.15, y=0.2)
        axes.set_xlabel(across)
        axes.set_ylabel(up)

    return _drawn("plane", title, draw, format)


def risk_curves(title: str, curves: Mapping[str, Sequence[Point]], risk: str, format: Format = "svg") -> Plot:
    """The risk among the surest questions, for every share of them that is answered."""

    def draw(axes: Axes) -> None:
        for place, (name, points) in enumerate(curves.items()):
            xs, ys = [point.coverage for point in points], [point.risk for point in points]
            axes.plot(xs, ys, color=_colour(place), marker="." if len(points) < 30 else None, label=_readable(name))
        axes.set_xlim(0, 1.02)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("coverage: share of questions answered")
        axes.set_ylabel(risk)
        axes.legend(frameon=False)

    return _drawn("risk-coverage", title, draw, format)


def reliability_diagram(title: str, bins: Sequence[Bin], format: Format = "svg") -> Plot:
    """What was expected against what was found; on the diagonal both are the same. A dot's size is the number of questions."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
        most = max(part.n for part in bins)
        sizes = [20 + 180 * part.n / most for part in bins]
        axes.scatter([part.confidence for part in bins], [part.share for part in bins], s=sizes, color=_colour(0), alpha=0.8)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("expected worth, -1 to 1 as 0 to 1")
        axes.set_ylabel("measured worth, the same way")

    return _drawn("calibration", title, draw, format)


def histogram(title: str, values: Mapping[str, Sequence[float]], across: str, format: Format = "svg") -> Plot:
    """How often each name took how long, on a logarithmic axis: fast and slow arms are far apart."""

    def draw(axes: Axes) -> None:
        import numpy as np

        every = [max(value, 0.1) for of in values.values() for value in of]
        edges = np.logspace(np.log10(min(every) * 0.95), np.log10(max(every) * 1.05), 30).tolist()
        for place, (name, of) in enumerate(values.items()):
            clipped = [max(value, 0.1) for value in of]
            axes.hist(clipped, bins=edges, histtype="step", linewidth=1.6, color=_colour(place), label=_readable(name))
        axes.set_xscale("log")
        axes.set_xlabel(across)
        axes.set_ylabel("questions")
        axes.legend(frameon=False, fontsize=8)

    return _drawn("latency", title, draw, format)


def _drawn(name: str, title: str, draw: Callable[[Axes], None], format: Format) -> Plot:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    found = _cjk_font()
    family = ["DejaVu Sans", *([found] if found else [])]
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": name, "font.family": family}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(_readable(title), fontsize=10)
        out = io.BytesIO()
        # No date and no names of tools, so that equal runs give equal files.
        figure.savefig(out, format=format, dpi=120, metadata={"Date": None, "Creator": None} if format == "svg" else {"Software": None})
    return Plot(name, title, format, out.getvalue())


def _cjk_font() -> str | None:
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    return next((name for name in _CJK if name in known), None)


def _readable(label: str) -> str:
    if label.isascii() or _cjk_font() is not None:
        return label.replace("$", r"\$")
    return label.encode("ascii", "backslashreplace").decode().replace("$", r"\$")


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]
