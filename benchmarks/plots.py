"""The plots, drawn in the notebooks' container, which has matplotlib. Reads JSON, writes JSON with the pictures in base64."""

import base64
import io
import json
import sys
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

OURS, THEIRS, GOAL = "#1f77b4", "#999999", "#d62728"


def picture(figure: Any) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return base64.b64encode(out.getvalue()).decode()


def ratios(lines: list[dict[str, Any]]) -> str:
    """How many times better than the defaults each line is, and its goal."""
    shown = [line for line in lines if line["ratio"]]
    figure, axes = plt.subplots(figsize=(9, 0.34 * len(shown) + 1))
    for row, line in enumerate(reversed(shown)):
        axes.barh(row, line["ratio"], color=OURS, height=0.65)
        axes.text(line["ratio"] * 1.05, row, f"{line['ratio']:.3g}×", va="center", fontsize=8)
        if line["goal_ratio"]:
            axes.plot([line["goal_ratio"]] * 2, [row - 0.42, row + 0.42], color=GOAL, linewidth=2)
    axes.set_yticks(range(len(shown)), [line["label"] for line in reversed(shown)], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color=THEIRS, linewidth=1)
    axes.margins(x=0.15, y=0.01)
    axes.set_xlabel("times better than MLflow's defaults (red: the goal)")
    axes.spines[["top", "right"]].set_visible(False)
    return picture(figure)


def growth(points: list[dict[str, Any]]) -> str:
    """Logging and searching against the number of runs."""
    panels = (
        ("rate", "log_metric in a loop, calls/s", 1),
        ("latency", "synchronous log_metric, ms", 1000),
        ("search", "search of runs, ms", 1000),
    )
    figure, all_axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for axes, (name, title, factor) in zip(all_axes, panels, strict=True):
        for side, colour in (("defaults", THEIRS), ("mlstack", OURS)):
            own = [point for point in points if point["side"] == side]
            axes.plot([point["runs"] for point in own], [point[name] * factor for point in own], "o-", color=colour, label=side)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("runs in the database")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].legend(frameon=False)
    figure.tight_layout()
    return picture(figure)


request = json.load(sys.stdin)
drawn = {"performance": ratios(request["lines"])}
if request["growth"]:
    drawn["growth"] = growth(request["growth"])
json.dump(drawn, sys.stdout)
