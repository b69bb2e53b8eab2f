"""A recommendation in the terminal: on one screen, or with everything that it rests on.

Reads the same without colour, and no figure is ever cut: a table wider than the console goes on
below with its first column repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.records import Evaluation, Recommendation
from advisor.report import view
from advisor.report.candidate_lines import candidate_lines, legend
from advisor.report.fitted import folded
from advisor.report.screen import answer_lines, budget_lines, screen
from advisor.units import format_bytes, format_count, format_flops, format_seconds

UNITS_LINE = "1 multiply-add = 2 FLOPs; MB = 10^6 bytes."
NAMES_SHOWN = 4  # of candidates that share a reason
NAME_WIDTH = 50  # from which on a name in a table of figures goes on in the next line
GAP = 2  # columns between two cells: rich's padding and divider

Row = tuple[str, Sequence[str]]  # style, cells


class Output(Console):
    """Standard output; a reader who stops reading is not rich's to judge: the command line exits with 0."""

    def on_broken_pipe(self) -> None:
        """Leave it to the caller."""
        raise BrokenPipeError


def print_recommendation(
    recommendation: Recommendation,
    console: Console | None = None,
    *,
    saved: str | None = None,
    everything: bool = False,
) -> None:
    """The answer on one screen, or with every candidate, what would change it, and all notes.

    Args:
        console: where to; stdout by default, as for `print_profile`.
        saved: the answer's JSON file, for the commands to type next.
    """
    console = console or Output(highlight=False)
    if not everything:
        _print_lines(screen(recommendation, console.width, saved), console)
        return
    _print_lines(answer_lines(recommendation, console.width), console)
    console.print()
    _print_subject(recommendation, console)
    console.print()
    _print_budgets(recommendation, console)
    _print_candidates(recommendation, console)
    if recommendation.relaxations:
        _heading("What would change the answer", console)
        for relaxation in recommendation.relaxations:
            _item(relaxation.sentence, console)
    _print_footnotes(recommendation, console)


def print_profile(recommendation: Recommendation, console: Console | None = None) -> None:
    """The base model by layer type, and every method's cost; no data, no choice."""
    console = console or Output(highlight=False)
    _print_subject(recommendation, console)
    _print_layer_types(recommendation, console)
    _print_costs(recommendation, console)
    _print_flops(recommendation, console)
    _print_footnotes(recommendation, console)


def print_layer_types(recommendation: Recommendation, console: Console | None = None) -> None:
    """One update of each method, with its settings as they are, split by layer type."""
    console = console or Output(highlight=False)
    _print_subject(recommendation, console)
    _print_layer_types(recommendation, console)
    for item in recommendation.evaluations:
        if item.candidate.levers.described():
            continue
        costs = item.cost.by_layer_type
        unit = view.flop_unit(costs[kind].flops.total for kind in costs)
        _heading(f"One update of {item.candidate.short}, FLOPs in {unit.name}", console)
        headers = ("layer type", "params\ntrained", "forward", "input\ngradient", "weight\ngradient", "saved")
        rows: list[Row] = []
        for kind in view.layer_types_of(costs):
            cost = costs[kind]
            phases = [unit.show(getattr(cost.flops, phase)) for phase in view.FLOP_PHASES[:3]]
            cells = (kind, f"{cost.trainable_parameters:,}", *phases, format_bytes(cost.saved_bytes))
            rows.append(("", cells))
        _print_table(headers, rows, console)
        peak = format_bytes(item.cost.peak_memory_bytes)
        _prose(f"Saved: kept from the forward pass for the backward pass. Peak: {peak}.", console)
    _print_footnotes(recommendation, console)


def _print_costs(recommendation: Recommendation, console: Console) -> None:
    full = recommendation.full
    _heading("Cost of one update", console)
    headers = (
        *("candidate", "peak\nmemory", "% of\nfull", "FLOPs per\nupdate", "% of\nfull"),
        *("params\ntrained", "to\nship"),
        *((f"time on\n{recommendation.target.name}",) if recommendation.target else ()),
    )
    rows: list[Row] = []
    for item in _main_ones_as_priced(recommendation):
        memory, flops = item.cost.peak_memory_bytes, item.cost.flops.total
        cells = (
            item.candidate.short,
            format_bytes(memory),
            _of_full(memory, full.cost.peak_memory_bytes if full else None),
            format_flops(flops),
            _of_full(flops, full.cost.flops.total if full else None),
            format_count(item.cost.trainable_parameters),
            format_bytes(item.cost.delta_bytes),
            *((format_seconds(item.forecast.update_seconds),) if item.forecast else ()),
        )
        rows.append(("", cells))
    _print_table(headers, rows, console)
    flops_per_sample = full and view.multiply_add_flops_per_sample(full, recommendation.batch_size)
    if flops_per_sample:
        line = f"full: {format_flops(flops_per_sample)} per sample in convolution and linear layers"
        _prose(f"{line}, both passes.", console)


def _main_ones_as_priced(recommendation: Recommendation) -> list[Evaluation]:
    main = {item.candidate.id for item in view.main_ones(recommendation)}
    return [item for item in recommendation.evaluations if item.candidate.id in main]


def _print_flops(recommendation: Recommendation, console: Console) -> None:
    evaluations = _main_ones_as_priced(recommendation)
    unit = view.flop_unit(item.cost.flops.total for item in evaluations)
    _heading(f"FLOPs of one update, by phase, in {unit.name}", console)
    headers = ("candidate", "forward", "input\ngradient", "weight\ngradient", "optimizer", "total")
    rows: list[Row] = []
    for item in evaluations:
        flops = item.cost.flops
        cells = [unit.show(getattr(flops, phase)) for phase in (*view.FLOP_PHASES, "total")]
        rows.append(("", (item.candidate.short, *cells)))
    _print_table(headers, rows, console)

    _heading(f"FLOPs of one update, by layer type, in {unit.name}", console)
    kinds = view.layer_types_of(kind for item in evaluations for kind in item.cost.by_layer_type)
    rows = []
    for item in evaluations:
        costs = item.cost.by_layer_type
        cells = [unit.show(costs[kind].flops.total if kind in costs else 0) for kind in kinds]
        rows.append(("", (item.candidate.short, *cells)))
    _print_table(("candidate", *kinds), rows, console)


def _print_subject(recommendation: Recommendation, console: Console) -> None:
    model, data = recommendation.model, recommendation.data
    size = "x".join(map(str, recommendation.input_size))
    weights = f"{format_count(model.parameters)} parameters, {format_bytes(model.parameter_bytes)}"
    batch = f"batch {recommendation.batch_size} of {size}"
    lines = [f"Model: {model.name} ({model.source}), {weights}; {batch}"]
    if data:
        new = f", {data.new_classes} of them new" if data.new_classes else ""
        lines.append(
            f"Data: {data.source}, {data.classes} classes{new}; "
            f"{view.split_text(recommendation, data, 'samples ')}; "
            f"probes took {data.probe_seconds:.0f} s{view.how_probed_text(data)}"
        )
        if data.probes_recalled:
            lines.append(f"Probes: {data.probes_recalled} from the store, {data.probes_run} run now")
        if data.unlabelled is not None:
            lines.append(
                f"Unlabelled: {data.unlabelled_samples:,} images of {data.unlabelled}, "
                "for methods that look at no labels"
            )
        if data.base_accuracy:
            by_class, old = (
                view.by_class_text(data.base_accuracy, recommendation),
                data.base_accuracy.retained,
            )
            split = f": {by_class}" if by_class else ""
            lines.append(f"Accuracy as it is: {view.accuracy_text(data.base_accuracy)}{split}")
            if old:
                lines.append(f"On the old data, {data.retain}: {view.accuracy_text(old)}")
        chosen = view.chosen(recommendation)
        by_class = view.by_class_text(chosen.accuracy, recommendation) if chosen and chosen.accuracy else ""
        if chosen and by_class:
            lines.append(f"Of {chosen.candidate.short}: {by_class}")
    for line in lines:
        _prose(line, console)


def _print_budgets(recommendation: Recommendation, console: Console) -> None:
    _print_lines(budget_lines(recommendation, console.width), console)
    for item in recommendation.evaluations:
        if item.measured:
            _item(f"{item.candidate.short} {view.measured_text(item, recommendation.budget)}.", console)


def _print_candidates(recommendation: Recommendation, console: Console) -> None:
    _heading("Candidates", console)
    evaluations = view.ordered(recommendation)
    _print_lines(candidate_lines(evaluations, recommendation, console.width, whole_names=True), console)
    for line in legend(evaluations):
        _item(line, console)
    reasons: dict[str, list[Evaluation]] = {}
    for item in view.nearest(evaluations):
        reasons.setdefault(view.BROKEN_LIMIT[item.violations[0].limit], []).append(item)
    for limit, items in reasons.items():
        many = f"{len(items)} candidates, the nearest of them " if len(items) > 1 else ""
        _item(f"{limit}: {many}{items[0].candidate.short}: {view.reason(items[0].violations[0])}", console)


def _print_layer_types(recommendation: Recommendation, console: Console) -> None:
    model = recommendation.model
    _heading("Base model by layer type", console)
    rows: list[Row] = []
    for kind in view.layer_types_of(model.layer_types):
        summary = model.layer_types[kind]
        cells = (kind, str(summary.count), f"{summary.parameters:,}", _flops(summary.forward_flops))
        rows.append(("", cells))
    headers = ("layer type", "layers", "parameters", "forward FLOPs\nper sample")
    _print_table(headers, rows, console)
    check = "unknown"
    if model.fvcore_forward_flops is not None:
        check = format_flops(model.fvcore_forward_flops)
    forward = format_flops(model.forward_flops)
    told = f"Forward pass of one sample: {forward}; fvcore's count of multiply-adds, doubled: {check}."
    _prose(told, console)


def _print_footnotes(recommendation: Recommendation, console: Console) -> None:
    evaluations = recommendation.evaluations
    _heading("Notes", console)
    for warning in recommendation.warnings:
        _item(f"Warning: {warning}", console)
    for assumption in recommendation.assumed:
        _item(f"Assumed: {assumption}.", console)
    failures: dict[str, list[str]] = {}
    for item in evaluations:
        if item.probe_failure and not item.predicted:
            failures.setdefault(item.probe_failure, []).append(item.candidate.short)
    for failure, names in failures.items():
        who = ", ".join(names) if len(names) <= NAMES_SHOWN else f"{len(names)} candidates"
        _item(f"no accuracy: {who}: {failure}", console)
    for method, why in recommendation.not_applicable.items():
        _item(f"{method}: not applicable: {why}", console)
    for note in view.summed_notes(evaluations):
        _item(note, console)
    missing = view.uncounted(evaluations)
    if missing:
        _item(f"Operators without a FLOP rule, not counted: {', '.join(missing)}.", console)
    fidelities = sorted({item.cost.fidelity for item in evaluations})
    if fidelities:
        _item(
            f"Memory and FLOPs are {' or '.join(fidelities)} for one update of the whole batch.",
            console,
        )
    _item(UNITS_LINE, console)


def _print_table(headers: Sequence[str], rows: Sequence[Row], console: Console) -> None:
    """One table, or several with the first column repeated where one would be too wide."""
    widths = [
        max(len(line) for text in (header, *(cells[n] for _, cells in rows)) for line in text.split("\n"))
        for n, header in enumerate(headers)
    ]
    widths[0] = min(widths[0], NAME_WIDTH)
    parts: list[list[int]] = [[]]
    for n in range(1, len(headers)):
        taken = widths[0] + sum(widths[m] + GAP for m in (*parts[-1], n))
        if taken > console.width and parts[-1]:
            parts.append([])
        parts[-1].append(n)
    for part in parts:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column(_text(headers[0]), width=widths[0], vertical="top")
        for n in part:
            table.add_column(_text(headers[n]), justify="right", no_wrap=True)
        for style, cells in rows:
            table.add_row(_text(cells[0]), *(_text(cells[n]) for n in part), style=style)
        console.print(table)


def _print_lines(lines: Sequence[Text], console: Console) -> None:
    """Lines that fit as they are."""
    for line in lines:
        console.print(line, no_wrap=True, crop=False, overflow="ignore")


def _heading(title: str, console: Console) -> None:
    console.print()
    console.print(_text(title, "bold"))


def _item(text: str, console: Console) -> None:
    _prose(f"- {text}", console)


def _prose(text: str, console: Console) -> None:
    """A sentence, folded between words; each line of it that ends where it came from ends here, too."""
    for part in text.split("\n"):
        _print_lines([Text(line) for line in folded(part, console.width, len(part) + 1)], console)


def _text(text: str, style: str = "") -> Text:
    """Text as it is: neither rich's markup nor a terminal's control codes act in it."""
    return Text("\n".join(map(view.printable, text.split("\n"))), style=style)


def _flops(count: int) -> str:
    return format_flops(count) if count else "-"


def _of_full(figure: float, full: float | None) -> str:
    return view.percent(view.share_of(figure, full), 0).removesuffix(" %")
