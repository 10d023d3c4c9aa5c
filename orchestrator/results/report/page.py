"""The HTML page: one file that opens from disk, reaches for nothing, and says all it has to say without a script."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.results.report import charts
from orchestrator.results.report.compare import differences, shared_cells
from orchestrator.results.report.curves import DISCRETE, LEARNING, Line, Metric
from orchestrator.results.report.heat import LEVELS
from orchestrator.results.report.told import Told
from orchestrator.results.report.wording import SIGNS, column_name, figure, place_name, shown
from orchestrator.results.wording import number

#: The tag near the beginning of every page by which it is known again.
GENERATOR = '<meta name="generator" content="altgrad report">'
#: Charts of one kind that are there from the start; the others are chosen.
_FIRST = 6
#: The share of a metric's values that its charts have room for: what is far above the others is cut off.
_HEIGHT = 0.97
#: Characters that could end a script or mean something to HTML, in JSON.
_JSON_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


class Drawing(NamedTuple):
    """A chart as it is without a script."""

    title: str
    svg: Markup


def page(told: Sequence[Told]) -> str:
    """The whole page."""
    scripts, style = [_vega(), _asset("report.js")], _asset("style.css")
    runs = [each.run for each in told]
    rows = list(dict.fromkeys(row for run in runs for row in run.matrix.rows))
    columns = _columns(told)
    first = _first_columns(told, columns)
    sections = {
        kind: _Curves.of(metrics, [getattr(each, kind) for each in told])
        for kind, metrics in (("learning", LEARNING), ("discrete", DISCRETE))
    }
    data = _data(told, rows, columns, sections)
    return (
        _environment()
        .get_template("page.html")
        .render(
            told=told,
            several=len(told) > 1,
            generator=Markup(GENERATOR),
            title=" and ".join(run.name for run in runs),
            policy=_policy(scripts, style),
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            data=Markup(_json(data)),
            formats=charts.styles(rows),
            columns=columns,
            first_columns=first,
            sections=sections,
            drawings={kind: section.drawings(told, rows, first) for kind, section in sections.items()}
            | {"ranks": _rank_drawings(told)},
            rank_options=[("", "most worrying first"), *((name, f"chosen settings of {name}") for name in columns)],
            ratio=(charts.RATIO_LOW, charts.RATIO_HIGH),
            differences=differences(runs) if len(runs) > 1 else [],
            shared_cells=shared_cells(runs) if len(runs) > 1 else [],
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.results.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {"column_name": column_name, "place_name": place_name, "levels": LEVELS, "signs": SIGNS}
    environment.filters |= {"number": number, "shown": shown, "figure": figure}
    return environment


class _Curves(NamedTuple):
    """A section of curves: what can be chosen in it, and its lines run by run."""

    metrics: list[Metric]
    lines: list[list[Line]]

    @classmethod
    def of(cls, metrics: Sequence[Metric], lines: Sequence[list[Line]]) -> "_Curves":
        """The section with the metrics that have a point anywhere."""
        there = [each for each in metrics if any(line.values[each.name] for run in lines for line in run)]
        return cls(there, list(lines))

    @property
    def first(self) -> str:
        """The metric that is shown until another one is chosen; empty without any."""
        return self.metrics[0].name if self.metrics else ""

    @property
    def options(self) -> list[tuple[str, str]]:
        """Each metric's name and what it is."""
        return [(metric.name, metric.title) for metric in self.metrics]

    def domain(self, metric: str) -> list[float]:
        """The scale of all charts of a metric: every line's end is on it, and all but the highest of the rest."""
        points = [point for run in self.lines for line in run for point in line.values[metric]]
        ends = [line.values[metric][-1][1] for run in self.lines for line in run if line.values[metric]]
        edges = sorted(edge for _, *point in points for edge in point)
        return [edges[0], max([*ends, edges[int(_HEIGHT * (len(edges) - 1))]])]

    def drawings(self, told: Sequence[Told], rows: Sequence[str], columns: Sequence[str]) -> list[Drawing]:
        """A chart of the first metric for each run and column, all on one scale."""
        shown = [[line for line in run if column_name(line.place[1]) in columns] for run in self.lines]
        if not self.first:
            return []
        spec = charts.curve_spec(rows, self.domain(self.first))
        drawings: list[Drawing] = []
        for each, run in zip(told, shown, strict=True):
            for name in columns:
                data = charts.curve_rows([line for line in run if column_name(line.place[1]) == name], self.first)
                if data:
                    drawings.append(_drawing(spec, data, _title(each, name, told), f"{self.first}-{len(drawings)}"))
        return drawings


def _data(
    told: Sequence[Told], rows: Sequence[str], columns: Sequence[str], sections: Mapping[str, _Curves]
) -> dict[str, Any]:
    """What the script draws from."""
    curve = charts.curve_spec(rows)
    return {
        "worrying": _FIRST,
        "columns": list(columns),
        "rankRow": charts.RANK_ROW,
        "curve": {**curve, "layer": [*curve["layer"], charts.hover_layer()]},
        "rank": {str(is_ratio).lower(): charts.rank_spec(is_ratio, []) for is_ratio in (True, False)},
        "first": {kind: section.first for kind, section in sections.items()},
        "metrics": {
            metric.name: {"title": metric.title, "domain": section.domain(metric.name)}
            for section in sections.values()
            for metric in section.metrics
        },
        "runs": [
            {
                "name": each.run.name,
                "learning": [line.to_dict() for line in each.learning],
                "discrete": [line.to_dict() for line in each.discrete],
                "ranks": [health.to_dict() for health in each.ranks],
            }
            for each in told
        ],
    }


def _columns(told: Sequence[Told]) -> list[str]:
    """Every column that has a line, in the matrices' order."""
    there = {column_name(line.place[1]) for each in told for line in (*each.learning, *each.discrete)}
    every = dict.fromkeys(column_name(column) for each in told for column in each.run.matrix.columns)
    return [name for name in every if name in there]


def _first_columns(told: Sequence[Told], columns: Sequence[str]) -> list[str]:
    """The columns that are drawn from the start: those with the best cells, in the matrices' order."""
    best: dict[str, float] = {}
    for each in told:
        sign = -1.0 if each.run.matrix.goal == "maximize" else 1.0
        for cell in each.run.matrix.cells.values():
            if cell.mean is not None:
                name = column_name(cell.column)
                best[name] = min(sign * cell.mean, best.get(name, float("inf")))
    leading = sorted(columns, key=lambda name: best.get(name, float("inf")))[:_FIRST]
    return [name for name in columns if name in leading]


def _rank_drawings(told: Sequence[Told]) -> list[Drawing]:
    """The most worrying heat maps of each run."""
    drawings: list[Drawing] = []
    for each in told:
        for health in each.ranks[:_FIRST]:
            spec, rows = charts.rank_spec(health.is_ratio, health.matrices), charts.rank_rows(health)
            warned = f", {health.warned} warning{'s' if health.warned > 1 else ''}" if health.warned else ""
            drawings.append(
                _drawing(spec, rows, _title(each, health.setting.name + warned, told), f"ranks-{len(drawings)}")
            )
    return drawings


def _drawing(spec: charts.Spec, rows: Sequence[Mapping[str, Any]], title: str, name: str) -> Drawing:
    return Drawing(title, Markup(charts.drawn(spec, rows, name)))


def _title(each: Told, name: str, told: Sequence[Told]) -> str:
    return f"{each.run.name} · {name}" if len(told) > 1 else name


def _policy(scripts: Sequence[str], style: str) -> str:
    """A content security policy under which nothing runs but these scripts, and nothing is fetched."""
    allowed = " ".join(map(_digest, scripts))
    return f"default-src 'none'; script-src {allowed}; style-src {_digest(style)}; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """JSON that HTML cannot take for anything else."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_JSON_ESCAPES)


@cache
def _vega() -> str:
    """The charts' libraries; no text in them may end the script they stand in."""
    return charts.script().replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r", "\\r")


def _asset(name: str) -> str:
    return files("orchestrator.results.report").joinpath(name).read_text(encoding="utf-8")
