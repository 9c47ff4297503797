"""The loss curve of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(log: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """The loss per token over steps, train and dev, as a PNG. Drawn without pyplot, which keeps state for the whole process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.12, top=0.92)
    axes = figure.add_subplot(xlabel="step", ylabel="loss per token", title=title)
    for key, label, style in (("loss", "train", "-"), ("eval_loss", "dev", "o-")):
        points = [(event["step"], event[key]) for event in log if key in event]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, dpi=110, format="png", metadata={"Software": None})
    beside.replace(path)
