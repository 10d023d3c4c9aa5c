"""Vega-Lite specifications of the charts, and the same drawn as SVG for where no script runs.

Colours are the page's CSS variables, so that one drawing serves light, dark and paper.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import vl_convert

from orchestrator.results.report.curves import Line
from orchestrator.results.report.ranks import Health

Spec = dict[str, Any]

#: Size of a chart in pixels; on a screen the width follows its column.
WIDTH, HEIGHT = 330, 210
#: Height of a row of a heat map.
RANK_ROW = 17
#: Dashes of lines next to each other in the order of formats.
_DASHES: tuple[list[int], ...] = ([], [6, 3], [2, 2], [9, 3, 2, 3])
#: The ends of the scale of rank ratios: where warnings are general, and a little above the control.
RATIO_LOW, RATIO_HIGH = 0.6, 1.05
#: A sign that stands out on every colour of the scale.
_MARK = {"filled": True, "fill": "#ffffff", "stroke": "#000000", "strokeWidth": 1}
#: The scale of ranks, dark to light; the same on every background.
_RAMP = "cividis"

_AXIS = {
    "domainColor": "var(--rule)",
    "gridColor": "var(--grid)",
    "tickColor": "var(--rule)",
    "labelColor": "var(--soft)",
    "titleColor": "var(--soft)",
    "labelFontSize": 11,
    "titleFontSize": 11,
    "titleFontWeight": "normal",
}
_CONFIG = {
    # A chart is one image to a screen reader; its numbers are in the tables.
    "aria": False,
    "font": "system-ui, sans-serif",
    "background": "transparent",
    "view": {"stroke": None},
    "axis": _AXIS,
    "rect": {"strokeWidth": 0},
}


def styles(rows: Iterable[str]) -> dict[str, tuple[str, list[int]]]:
    """The colour and dashes of each row's lines: formats by their bits, the same in every report; others in grey."""
    found, wide = {}, 0
    for row in rows:
        match = re.fullmatch(r"E([0-7])M([0-7])", row)
        if match:
            exponent = int(match[1])
            found[row] = f"var(--e{exponent})", _DASHES[exponent % len(_DASHES)]
        else:
            found[row] = "var(--wide)", _DASHES[wide % len(_DASHES)]
            wide += 1
    return found


def curve_spec(rows: Sequence[str], domain: Sequence[float] = ()) -> Spec:
    """Lines with bands over steps; data rows are ``format, step, mean, lowest, highest, replicates``."""
    drawn = styles(rows)
    colour = {"domain": [*drawn], "range": [colour for colour, _ in drawn.values()]}
    dashes = {"domain": [*drawn], "range": [dash for _, dash in drawn.values()]}
    y_scale: Spec = {"zero": False, "nice": True}
    if domain:
        y_scale["domain"] = list(domain)
    x: Spec = {"field": "step", "type": "quantitative", "title": "step"}
    x |= {"axis": {"grid": False, "tickCount": 6, "format": "~s"}, "scale": {"nice": False}}
    y: Spec = {"field": "mean", "type": "quantitative", "title": None}
    y |= {"scale": y_scale, "axis": {"tickCount": 5, "format": "~g", "domain": False, "ticks": False}}
    encoding = {"x": x, "color": {"field": "format", "scale": colour, "legend": None}}
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "encoding": encoding,
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15, "clip": True},
                "encoding": {"y": {**y, "field": "lowest"}, "y2": {"field": "highest"}},
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.7, "clip": True},
                "encoding": {"y": y, "strokeDash": {"field": "format", "scale": dashes, "legend": None}},
            },
        ],
        "config": _CONFIG,
    }


def hover_layer() -> Spec:
    """What follows the pointer over a `curve_spec`: the nearest point, and all that its row says."""
    near = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout", "fields": ["format", "step"]}
    return {
        "params": [{"name": "near", "select": near}],
        # The whole row: a text among named fields is lost where points are found by nearness (Vega-Lite 6.4).
        "mark": {"type": "point", "filled": True, "size": 60, "clip": True, "tooltip": {"content": "data"}},
        "encoding": {
            "y": {"field": "mean", "type": "quantitative"},
            "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
        },
    }


def rank_spec(is_ratio: bool, matrices: Sequence[str]) -> Spec:
    """A heat map of matrices over steps; data rows are ``matrix, step, value, warnings``."""
    title = "effective rank over the control's" if is_ratio else "effective rank"
    scale: Spec = {"scheme": _RAMP}
    if is_ratio:
        scale |= {"domain": [RATIO_LOW, RATIO_HIGH], "clamp": True}
    y_axis = {"labelLimit": 150, "domain": False, "ticks": False, "labelFontSize": 10}
    tooltip = [
        {"field": "matrix", "type": "nominal"},
        {"field": "step", "type": "ordinal"},
        {"field": "value", "type": "quantitative", "format": ".3f", "title": title},
        {"field": "warnings", "type": "quantitative"},
    ]
    return {
        "width": WIDTH - 110,
        "height": RANK_ROW * len(matrices),
        "encoding": {
            "x": {
                "field": "step",
                "type": "ordinal",
                "axis": {"labelAngle": 0, "labelOverlap": "greedy", "domain": False, "ticks": False, "title": "step"},
            },
            "y": {"field": "matrix", "type": "nominal", "sort": [*matrices], "title": None, "axis": y_axis},
            "tooltip": tooltip,
        },
        "layer": [
            {
                "mark": {"type": "rect"},
                "encoding": {"color": {"field": "value", "type": "quantitative", "scale": scale, "legend": None}},
            },
            {
                "transform": [{"filter": "datum.warnings > 0"}],
                "mark": {"type": "point", "shape": "triangle-up", "size": 50, "opacity": 1, **_MARK},
            },
        ],
        "config": _CONFIG,
    }


def curve_rows(lines: Iterable[Line], metric: str) -> list[dict[str, Any]]:
    """The data of a `curve_spec`."""
    return [
        {"format": line.place[0], "replicates": len(line.setting.lanes), **_point(point)}
        for line in lines
        for point in line.values[metric]
    ]


def rank_rows(health: Health) -> list[dict[str, Any]]:
    """The data of a `rank_spec`."""
    return [
        {"matrix": matrix, "step": step, "value": value, "warnings": warned}
        for matrix, values, warnings in zip(health.matrices, health.values, health.warnings, strict=True)
        for step, value, warned in zip(health.steps, values, warnings, strict=True)
        if value is not None
    ]


def drawn(spec: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """A chart as SVG; ``name`` tells its identifiers from those of other charts on a page."""
    svg = str(vl_convert.vegalite_to_svg({**spec, "data": {"values": list(rows)}}))
    # Vega counts them over all charts of a process.
    clips = dict.fromkeys(re.findall(r'id="(clip\d+)"', svg))
    for i, clip in enumerate(clips):
        svg = re.sub(rf'(id="|url\(#){clip}(?=["\)])', rf"\g<1>{name}-{i}", svg)
    return svg


def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _point(point: Sequence[float]) -> dict[str, float]:
    step, mean, *spread = point
    return {"step": step, "mean": mean, **dict(zip(("lowest", "highest"), spread, strict=False))}
