"""One self-contained page: no network, readable on a phone, on paper, and without its script."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from advisor.records import Recommendation
from advisor.report import explain, first_screen, ledger, view, whatif
from advisor.report.layers import layers_of
from advisor.report.over_time import has_one_scale, over_time, purposes
from advisor.report.rows import numbered_rows
from advisor.report.sweeps import curves, sweeps
from advisor.report.trade import trade_charts
from advisor.report.typeset import breakable, shell, typeset
from advisor.solver import allowed_memory
from advisor.system.files import write_whole
from advisor.units import format_bytes, format_count, format_flops, format_joules, format_seconds

_NUMBER = re.compile(r'class="label[^>]*>\d+<')  # for a point's name


def render_html(recommendation: Recommendation) -> str:
    """The page's text. Everything that comes from outside is escaped."""
    rows = numbered_rows(recommendation)
    main = [row for row in rows if row.is_main]
    findings = first_screen.ranked_findings(recommendation)
    shown_over_time = over_time(recommendation)
    script = _script()
    charts = trade_charts(recommendation, rows)
    page = environment().get_template("report.html")
    return page.render(
        recommendation=recommendation,
        headline=first_screen.headline(recommendation),
        tiles=first_screen.tiles(recommendation),
        wishes=first_screen.wishes(recommendation),
        evidence=first_screen.evidence(recommendation),
        findings=findings,
        has_pictures=any(finding.pictures for finding in findings),
        commands=first_screen.commands(recommendation),
        rows=rows,
        main=main,
        chosen=next((row for row in rows if row.kind == "chosen"), None),
        runs=[row for row in rows if row.evaluation.measured],
        asked=explain.asked(recommendation),
        charts=charts,
        has_numbers=any(_NUMBER.search(chart.svg) for chart in charts),
        name_parts=view.name_parts(recommendation),
        facts=whatif.facts(recommendation) if rows else None,
        script=script,
        script_hash=_base64(hashlib.sha256(script.encode()).digest()),
        memory_ledgers=ledger.memory_ledgers(main, allowed_memory(recommendation.budget)),
        flop_ledgers=ledger.flop_ledgers(main, recommendation.budget.flops),
        trained_ledger=ledger.trained_ledger(main),
        full=recommendation.full,
        shown_over_time=shown_over_time,
        has_one_scale=has_one_scale(shown_over_time),
        purposes=purposes(shown_over_time, recommendation),
        layers=layers_of(recommendation),
        sweeps=sweeps(recommendation),
        curves=curves(recommendation),
        allowed=allowed_memory(recommendation.budget),
        census=_census(recommendation),
        sources=explain.sources(recommendation),
        definitions=explain.DEFINITIONS,
        notes=view.grouped_notes([row.evaluation for row in main]),
        uncounted=view.uncounted(recommendation.evaluations),
        multiply_adds=_multiply_adds(recommendation),
        # What guessing gets is the same for all, and stands on the first screen.
        by_class_text=lambda accuracy: view.by_class_text(accuracy, recommendation, with_guess=False),
    )


def environment() -> Environment:
    """Templates in which everything is escaped, and printable."""
    environment = Environment(
        loader=PackageLoader("advisor.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {
        "base64": _base64,
        "bytes": format_bytes,
        "flops": format_flops,
        "count": format_count,
        "seconds": format_seconds,
        "joules": format_joules,
        "percent": view.percent,
        "breakable": breakable,
        "shell": shell,
        "typeset": typeset,
    }
    environment.globals |= {
        "share_of": view.share_of,
        "setting_text": view.setting_text,
        "costs_text": view.costs_text,
        "more_of": view.more_of,
        "figures_text": view.figures_text,
        "interval_text": view.interval_text,
    }
    return environment


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _script() -> Markup:
    """The page's only script: nothing in it depends on what is shown."""
    folder = files("advisor.report") / "templates"
    text = "".join((folder / name).read_text(encoding="utf-8") for name in ("solver.js", "page.js"))
    return Markup(text)  # noqa: S704 - the package's own files


def write_html(recommendation: Recommendation, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all. Raises InputError where that can't be done."""
    write_whole(path, render_html(recommendation))


def _finalize(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return view.printable(value)
    return value


def _census(recommendation: Recommendation) -> list[tuple[str, str, int, int, int]]:
    """(layer type, colour, layers, parameters, forward FLOPs), and what belongs to no layer."""
    model = recommendation.model
    lines = [
        (
            kind,
            ledger.type_colour(kind),
            summary.count,
            summary.parameters,
            summary.forward_flops,
        )
        for kind in view.layer_types_of(model.layer_types)
        for summary in [model.layer_types[kind]]
    ]
    parameters = model.parameters - sum(line[3] for line in lines)
    flops = model.forward_flops - sum(line[4] for line in lines)
    if parameters or flops:
        lines.append(("no layer", "k7", 0, parameters, flops))
    return lines


def _multiply_adds(recommendation: Recommendation) -> float | None:
    full = recommendation.full
    return view.multiply_add_flops_per_sample(full, recommendation.batch_size) if full else None
