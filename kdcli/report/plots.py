"""Draws the plots of report.html as SVG."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from kdcli.numbers import format_number, format_pair
from kdcli.report.metrics import MODELS
from kdcli.tasks.presentation import Metric

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
_MAX_POINTS = 300  # of a curve; more cannot be seen, and would make the page heavy
PADDING = 4.0
"""Pixels around the labels of a plot."""
LARGEST_MARGIN = 0.4
"""The maximum share of the figure that the labels of a side take."""
TERMS = 20
"""Colours of loss terms; further ones begin again."""
INKS = ("ink", "muted", "grid", *MODELS, *(f"term{i}" for i in range(TERMS)))
HEX = {
    name: f"#0000{i:02x}" for i, name in enumerate(INKS, 1)
}  # stand-ins, replaced by CSS variables in the SVG


def _svg(
    name: str, label: str, draw: Callable[[Axes], None], size: tuple[float, float] = (5.2, 2.7)
) -> Markup:
    """Draw one plot (``size`` in inches at 72 px) as an SVG element for an HTML page; `label` says what it shows to those who cannot see it.

    Its text stays text and takes the page's font; ``name`` salts its ids, which have to differ within a page.
    The same figures give the same bytes. pyplot and the user's matplotlib settings are not used.
    """
    from markupsafe import Markup, escape
    from matplotlib import style
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"kdcli-{name}",
        "text.parse_math": False,  # a label called $x$ is not a formula
        "font.size": 11,
        "text.color": HEX["ink"],
        "axes.labelcolor": HEX["muted"],
        "axes.edgecolor": HEX["grid"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": HEX["grid"],
        "grid.linewidth": 0.8,
        "xtick.color": HEX["grid"],
        "ytick.color": HEX["grid"],
        "xtick.labelcolor": HEX["muted"],
        "ytick.labelcolor": HEX["muted"],
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
    }
    with style.context(["default", settings]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks: the browser's has it
        figure = Figure(figsize=size)
        axes = figure.subplots()
        draw(axes)
        _fit_margins(figure, axes)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"| xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
    text = text.replace("<svg", f'<svg aria-label="{escape(label)}"', 1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return Markup(re.sub(r"#0000([0-9a-f]{2})\b", lambda m: f"var(--{INKS[int(m[1], 16) - 1]})", text))


def _fit_margins(figure: Figure, axes: Axes) -> None:
    """Give the labels of the axes the room that they need, in less time than matplotlib's constrained layout takes. Labels that are too long for the
    figure are clipped."""
    width, height = figure.bbox.size
    for _ in range(2):  # the first fit changes the size of the axes, and with it the ticks and their labels
        outer, inner = axes.get_tightbbox(), axes.get_window_extent()
        assert outer is not None
        left, bottom = (inner.x0 - outer.x0 + PADDING) / width, (inner.y0 - outer.y0 + PADDING) / height
        right, top = (outer.x1 - inner.x1 + PADDING) / width, (outer.y1 - inner.y1 + PADDING) / height
        left, bottom, right, top = (min(margin, LARGEST_MARGIN) for margin in (left, bottom, right, top))
        figure.subplots_adjust(left=left, bottom=bottom, right=1 - right, top=1 - top)


def _thin(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return points as x and y, averaged over equal groups of neighbours where there are more than can be seen."""
    width = math.ceil(len(points) / _MAX_POINTS) or 1
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [group[-1][0] for group in groups], [sum(y for _, y in group) / len(group) for group in groups]


def _step_axis(axes: Axes) -> None:
    """Label the x axis of a training curve, with whole steps alone."""
    axes.set_xlabel("step")
    locator: Any = axes.xaxis.get_major_locator()
    locator.set_params(integer=True)


def _series(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(r["step"], value) for r in records if (value := format_number(r.get(key))) is not None]


def loss_curves(metrics: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one plot a stage with every loss term, raw, and the legend that the page sets beneath it."""
    keys = dict.fromkeys(key for record in metrics for key in record)
    terms = list(
        dict.fromkeys(key.removeprefix("eval/")[5:] for key in keys if re.match(r"(eval/)?loss/", key))
    )
    stages = sorted(
        dict.fromkeys(record["stage"] for record in metrics),
        key=lambda s: (*MODELS, _model(s)).index(_model(s)),
    )
    for stage in stages:
        records = [record for record in metrics if record["stage"] == stage]
        lines = []
        for i, term in enumerate(terms):
            train, held_out = _series(records, f"loss/{term}"), _series(records, f"eval/loss/{term}")
            if train or held_out:
                lines.append((term, f"term{i % TERMS}", train, held_out))
        if not lines:
            continue
        values = [y for _, _, train, held_out in lines for _, y in (*train, *held_out)]

        def draw(ax: Axes, lines: Any = lines, values: Any = values) -> None:
            for _, colour, train, held_out in lines:
                ax.plot(*_thin(train), color=HEX[colour])
                ax.plot(
                    *_thin(held_out), color=HEX[colour], marker="o", markersize=4, linestyle=":", linewidth=1
                )
            if min(values) > 0 and max(values) > 50 * min(values):
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                ax.yaxis.set_minor_formatter(lambda value, _: "")
            _step_axis(ax)

        legend = [(term, colour) for term, colour, _, _ in lines]
        yield {
            "stage": stage,
            "svg": _svg(f"curve-{stage.replace('/', '-')}", f"Loss terms of the {stage} by step", draw),
            "legend": legend,
        }


def _model(stage: str) -> str:
    """Return the model that a stage trains: a phase of the student is called student/<phase>."""
    return stage.partition("/")[0]


def validation_plot(metric: Metric, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Plot the validation scores of all models, the student against the control; the phases of a model are concatenated."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for model in MODELS:
        before = 0
        for stage in dict.fromkeys(r["stage"] for r in metrics if _model(r["stage"]) == model):
            records = [r for r in metrics if r["stage"] == stage]
            if points := _series(records, "eval/score"):
                lines.setdefault(model, []).extend((before + step, score) for step, score in points)
            before += max(r["step"] for r in records)
    drawn: list[float] = []
    if not lines:
        return None

    def draw(ax: Axes) -> None:
        for stage, points in lines.items():
            xs, ys = _thin(points)
            figures = [metric.figure(y) for y in ys]
            ax.plot(xs, figures, color=HEX[stage], marker="o" if len(xs) < 40 else "", markersize=4)
            drawn.extend(figures)
        metric.axis(ax, "y", drawn)
        _step_axis(ax)

    label = f"Validation {metric.name} of {', '.join(lines)} by step"
    return {"svg": _svg("validation", label, draw), "legend": [(stage, stage) for stage in lines]}


def score_plot(metric: Metric, models: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Plot test scores as points with their intervals, in the order of the tables."""
    points = [
        (name, score, *format_pair(model.get("scores", {}).get(f"{metric.key}_ci95")))
        for name, model in models.items()
        if (score := format_number(model.get("score"))) is not None
    ]
    if not points:
        return None

    def draw(ax: Axes) -> None:
        texts = metric.texts(*(score for _, score, _, _ in points))
        drawn = []
        for y, (name, score, low, high) in enumerate(points):
            colour = HEX[name if name in MODELS else "muted"]
            drawn += [metric.figure(value) for value in (score, low, high) if value is not None]
            figure = metric.figure(score)
            if low is not None and high is not None:
                ax.plot(
                    [metric.figure(low), metric.figure(high)],
                    [y, y],
                    color=colour,
                    linewidth=3,
                    alpha=0.45,
                )
            ax.plot([figure], [y], color=colour, marker="o", markersize=8)
            ax.annotate(texts[y], (figure, y), (0, 9), textcoords="offset points", ha="center")
        ax.set_yticks(range(len(points)), [name for name, *_ in points])
        ax.set_ylim(len(points) - 0.5, -0.75)
        ax.margins(x=0.15)
        ax.grid(visible=False, axis="y")
        metric.axis(ax, "x", drawn)

    texts = metric.texts(*(score for _, score, _, _ in points))
    shown = (f"{name} {text}" for (name, *_), text in zip(points, texts, strict=True))
    return _svg("scores", f"Test {metric.name}: {', '.join(shown)}", draw, (5.2, 2.1))


def gain_plot(metric: Metric, verdict: Mapping[str, Any]) -> Markup | None:
    """Plot the gain over the control with its interval, against 0."""
    gain, (low, high) = format_number(verdict.get("gain_over_control")), format_pair(verdict.get("gain_ci95"))
    if gain is None or low is None or high is None:
        return None
    scale = metric.scale

    def draw(ax: Axes) -> None:
        ax.axvline(0, color=HEX["ink"], linewidth=1.2)
        ax.plot([scale * low, scale * high], [0, 0], color=HEX["student"], linewidth=3, alpha=0.45)
        ax.plot([scale * gain], [0], color=HEX["student"], marker="o", markersize=8)
        text = metric.differences(gain)[0]
        ax.annotate(text, (scale * gain, 0), (0, 9), textcoords="offset points", ha="center")
        ax.set_yticks([0], ["gain"])
        ax.set_ylim(-0.6, 0.8)
        reach = 1.25 * scale * max(abs(low), abs(high), abs(gain)) or 1.0
        ax.set_xlim(min(-0.3 * reach, 1.25 * scale * low), max(0.3 * reach, 1.25 * scale * high))
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(f"{metric.unit} over the control")

    shown = metric.differences(gain, low, high)
    label = f"Gain over the control: {shown[0]} {metric.unit}, 95 % interval {shown[1]} to {shown[2]}"
    return _svg("gain", label, draw, (5.2, 2.1))


def calibration_plot(models: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Plot accuracy against confidence in bins; below the diagonal a model is overconfident."""
    lines = {}
    for name, model in models.items():
        bins = model.get("calibration") or {}
        columns = (bins.get("confidence") or [], bins.get("accuracy") or [], bins.get("count") or [])
        points = [(format_number(x), format_number(y), n) for x, y, n in zip(*columns, strict=True) if n]
        if points := [(x, y, n) for x, y, n in points if x is not None and y is not None]:
            lines[name] = points
    if not lines:
        return None

    def draw(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color=HEX["muted"], linestyle=":", linewidth=1.2)
        for name, points in lines.items():
            xs, ys, counts = zip(*points, strict=True)
            ax.plot(xs, ys, color=HEX[name], linewidth=1.4)
            sizes = [6 + 74 * math.sqrt(n / max(counts)) for n in counts]
            ax.scatter(xs, ys, s=sizes, color=HEX[name], linewidths=0, alpha=0.8)
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel("confidence")
        ax.set_ylabel("accuracy")

    label = f"Accuracy by confidence of {', '.join(lines)}"
    return _svg("calibration", label, draw, (5.2, 3.4))
