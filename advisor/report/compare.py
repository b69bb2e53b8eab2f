"""Several answers side by side, in one page or table: of networks and boards, of limits or dates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from advisor.records import Accuracy, Compared, Evaluation
from advisor.report import view
from advisor.report.charts import Axis, Point, scatter
from advisor.report.explain import asked
from advisor.report.first_screen import headline
from advisor.report.fitted import cut, elided, folded
from advisor.report.html import environment
from advisor.report.terminal import Output
from advisor.solver import describe
from advisor.units import format_bytes, format_flops, format_joules, format_seconds

_NOT_RUN = "Costs are simulated, and none of these was run: recommend runs what it chooses under the limit."
_UNKNOWN = "Which network, or which method, adapts best can't be told from costs: --data tells."
_SOLVED = "not raced: of a head in closed form alone"
_LEAST_NAME = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One of those that are compared."""

    number: int
    pair: Compared
    choice: Evaluation | None
    use: str  # the choice, or why there is none
    more: str  # about that, in words
    limits: str
    made: str  # where and when

    @property
    def time(self) -> str:
        """An update's seconds, as predicted of its board or as run here; empty: unknown."""
        if self.choice is None or self.choice.update_seconds is None:
            return ""
        run = self.choice.measured
        known = self.choice.forecast is not None or (run is not None and run.survived)
        return format_seconds(self.choice.update_seconds) if known else ""

    @property
    def tune(self) -> str:
        """The whole fine-tune's seconds, predicted; empty: unknown."""
        forecast = self.choice.forecast if self.choice else None
        return format_seconds(forecast.tune_seconds) if forecast and forecast.tune_seconds else ""

    @property
    def joules(self) -> str:
        """An update's, predicted; empty: unknown."""
        forecast = self.choice.forecast if self.choice else None
        return format_joules(forecast.update_joules) if forecast and forecast.update_joules else ""

    @property
    def whole(self) -> str:
        """The update's memory and the runtime's; empty: unknown."""
        answer = self.pair.recommendation
        if self.choice is None or answer is None or answer.runtime is None:
            return ""
        return format_bytes(self.choice.cost.peak_memory_bytes + answer.runtime.beside(self.choice.cost))

    @property
    def accuracy(self) -> Accuracy | None:
        """On the user's images, of the choice or of the network as it is, where it is to be left so."""
        if self.is_left:
            return _base(self)
        return self.choice.accuracy if self.choice else None

    @property
    def is_left(self) -> bool:
        """Whether the network is to be left as it is."""
        return self.pair.recommendation is not None and self.pair.recommendation.outcome == "leave"


def render_comparison(compared: Sequence[Compared]) -> str:
    """The page's text. Everything that comes from outside is escaped."""
    rows = rows_of(compared)
    limits, made = {row.limits for row in rows}, {row.made for row in rows}
    columns = {name: any(getattr(row, name) for row in rows) for name in _OPTIONAL}
    columns["base"] = any(_base(row) for row in rows)
    columns["accuracy"] |= any(row.pair.solved for row in rows)
    columns |= {"limits": len(limits) > 1, "made": len(made) > 1}
    commands = {
        str(answer.provenance["command"]): row.pair.name
        for row in rows
        if (answer := row.pair.recommendation) and answer.provenance.get("command")
    }
    return (
        environment()
        .get_template("comparison.html")
        .render(
            title=title_of(compared),
            told=told_of(rows),
            groups=[(board_text(each), each) for each in by_board(rows)],
            columns=columns,
            chart=_chart(rows),
            commands=commands,
            solved_text=_SOLVED,
            base=_base,
        )
        .lstrip()
    )


def print_comparison(compared: Sequence[Compared], console: Console | None = None) -> None:
    """A table for each board; no line is wider than the console."""
    console = console or Output(highlight=False)
    rows = rows_of(compared)
    for number, group in enumerate(by_board(rows)):
        text = board_text(group)
        lines = [Text(line, "bold") for line in folded(text, console.width, 3)] if text else []
        for each in [*([Text()] if number else []), *lines, *_table(group, console.width)]:
            console.print(each, no_wrap=True, crop=False, overflow="ignore")
    console.print()
    for told in told_of(rows):
        for line in folded(f"- {told}", console.width, 6):
            console.print(line, no_wrap=True, crop=False, overflow="ignore", markup=False)


_OPTIONAL = ("accuracy", "whole", "time", "tune", "joules")


def rows_of(compared: Sequence[Compared]) -> list[Row]:
    """One for each, numbered from 1."""
    return [_row(number, pair) for number, pair in enumerate(compared, 1)]


def _row(number: int, pair: Compared) -> Row:
    answer = pair.recommendation
    if answer is None:
        return Row(number, pair, None, "no answer", pair.trouble, "", "")
    choice, told = view.chosen(answer), headline(answer)
    if choice is not None:
        words = describe(choice)
        words = f"{words}: {told.badge}" if words != choice.candidate.short else told.badge
    else:
        words = answer.relaxations[0].sentence if answer.relaxations else answer.answer
    # What the runtime takes of --ram is told of the board.
    budget = replace(answer.budget, runtime_overhead_bytes=0) if answer.target else answer.budget
    limits = dict(asked(replace(answer, budget=budget)))["Limits"]
    machine = str(answer.provenance.get("machine", "unknown"))
    made = f"{machine}, {str(answer.provenance.get('created', 'unknown'))[:10]}"
    use = choice.candidate.short if choice else told.badge
    return Row(number, pair, choice, use, words, limits, made)


def by_board(rows: Sequence[Row]) -> list[list[Row]]:
    """Those of each board together, as they came; none has a board of its own where none was given."""
    boards: dict[str, list[Row]] = {}
    for row in rows:
        boards.setdefault(row.pair.board, []).append(row)
    return list(boards.values())


def board_text(rows: Sequence[Row]) -> str:
    """What is known of the board; empty where none was given."""
    board = rows[0].pair.board
    if not board:
        return ""
    answer = next((row.pair.recommendation for row in rows if row.pair.recommendation), None)
    if answer is None or answer.target is None:
        return board
    target, ram = answer.target, answer.budget.ram_bytes
    said = f"{board}: {target.machine}, {target.threads} thread{'s' * (target.threads > 1)}"
    if answer.runtime is not None:
        of_ram = f" of {format_bytes(ram)}" if ram is not None else ""
        said += f", runtime {format_bytes(answer.runtime.bytes)}{of_ram}"
    return said


def title_of(compared: Sequence[Compared]) -> str:
    """How many networks, on how many boards."""
    networks, boards = {pair.name for pair in compared}, {pair.board for pair in compared}
    if boards == {""} or len(networks) * len(boards) != len(compared):
        return f"{len(compared)} answers compared"
    many = "s" * (len(networks) > 1)
    return f"{len(networks)} network{many} on {len(boards)} board{'s' * (len(boards) > 1)}"


def told_of(rows: Sequence[Row]) -> list[str]:
    """What holds for all of them: the limits, and how far the figures can be trusted."""
    limits, made = {row.limits for row in rows if row.limits}, {row.made for row in rows if row.made}
    answers = [row.pair.recommendation for row in rows if row.pair.recommendation]
    asked_for = {(answer.batch_size, answer.input_size) for answer in answers}
    told = []
    if len(limits) == 1 and limits != {"none"}:
        told.append(f"Limits: {next(iter(limits))}.")
    if len(asked_for) == 1:
        batch, size = next(iter(asked_for))
        told.append(f"Updates are of {batch} images of {' x '.join(map(str, size))}.")
    if any(answer.target for answer in answers):
        told.append("Time is predicted from what was measured on the board, not run there.")
    choices = [row.choice for row in rows if row.choice]
    if choices and not any(choice.measured for choice in choices):
        told.append(_NOT_RUN)
    if choices and not any(choice.accuracy for choice in choices):
        told.append(_UNKNOWN)
    if any(row.pair.solved for row in rows):
        told.append(f"~: {_SOLVED}; a race may find better.")
    for answer in answers:
        told += [text for text in answer.warnings if text.startswith("--target")]
    if len(made) == 1:
        told.append(f"Worked out on {next(iter(made))}.")
    return list(dict.fromkeys(told))


def _base(row: Row) -> Accuracy | None:
    data = row.pair.recommendation.data if row.pair.recommendation else None
    return data.base_accuracy if data else None


def _table(rows: Sequence[Row], width: int) -> list[Text]:
    """A line of headers and one for each row; what is named gives way before a figure does."""
    chosen = [row for row in rows if row.choice]
    columns = [("memory", [format_bytes(row.choice.cost.peak_memory_bytes) for row in chosen if row.choice])]
    flops = [format_flops(row.choice.cost.flops.total) for row in chosen if row.choice]
    columns.append(("FLOPs", [text.removesuffix("FLOP").rstrip() for text in flops]))
    columns += [
        (name, [getattr(row, field) or "-" for row in chosen])
        for name, field in (("time", "time"), ("fine-tune", "tune"), ("energy", "joules"))
        if any(getattr(row, field) for row in chosen)
    ]
    columns.append(("to ship", [format_bytes(row.choice.cost.delta_bytes) for row in chosen if row.choice]))
    if any(known_accuracy_text(row) for row in chosen):
        metric = next(row.pair.recommendation.budget.metric_kind for row in rows if row.pair.recommendation)
        columns.insert(0, (metric, [known_accuracy_text(row) or "-" for row in chosen]))
    figures = [_aligned(name, texts) for name, texts in columns]
    longest = max(map(cell_len, ("network", *(view.printable(row.pair.name) for row in rows))))
    uses = max([cell_len("use"), *(cell_len(view.printable(row.use)) for row in chosen)])
    room = width - 2 - sum(2 + cell_len(cells[0]) for cells in figures)
    is_beside = longest + 2 + uses <= room  # else what to use stands below each name
    while len(figures) > 1 and room < min(longest, _LEAST_NAME):
        room += 2 + cell_len(figures.pop()[0])
    name_room = min(longest, max(room, 1))

    def lines_of(mark: str, name: str, use: str, cells: Iterable[str], style: str) -> list[Text]:
        beside = [set_cell_size(view.printable(use), uses)] if is_beside else []
        texts = [mark + "  ".join([_sized(name, name_room), *beside, *cells]).rstrip()]
        texts += [] if is_beside or not use else [f"    {elided(use, width - 4)}"]
        return [Text(text, style) for text in texts]

    lines = lines_of(
        "  ", "network", "use" if is_beside else "", [cells[0] for cells in figures], "underline"
    )
    count = 0
    for row in rows:
        if row.choice is None:
            why = f"{row.use}: {row.more[:1].lower()}{row.more[1:]}" if row.more else row.use
            why = cut(why, max(width - 4 - name_room, 8))
            lines.append(Text(f"x {_sized(row.pair.name, name_room)}  {why}", "dim"))
            continue
        count += 1
        mark = "> " if row.pair.is_best else "  "
        figures_here = [cells[count] for cells in figures]
        style = "bold" if row.pair.is_best else ""
        lines += lines_of(mark, row.pair.name, row.use, figures_here, style)
    return lines


def _sized(name: str, width: int) -> str:
    return set_cell_size(elided(name, width), width)


def _aligned(name: str, texts: Sequence[str]) -> list[str]:
    widest = max(map(cell_len, (name, *texts)))
    return [" " * (widest - cell_len(text)) + text for text in (name, *texts)]


def known_accuracy_text(row: Row) -> str:
    """Of the choice, or `~` of a head in closed form; empty: unknown."""
    if row.accuracy:
        return view.percent(row.accuracy.mean)
    return f"~{view.percent(row.pair.solved.mean)}" if row.pair.solved else ""


def _chart(rows: Sequence[Row]) -> Markup | None:
    """The choices: accuracy where all have one in one metric, else seconds, else FLOPs, against memory."""
    found = [(row, row.choice, row.pair.recommendation) for row in rows]
    known = [(row, choice, answer) for row, choice, answer in found if choice and answer]
    if not known:
        return None
    memory = view.byte_unit((choice.cost.peak_memory_bytes for _, choice, _ in known), least=1)
    across = Axis(f"peak memory of one update, {memory.name}", memory.scale)
    accuracies = [choice.accuracy for _, choice, _ in known if choice.accuracy]
    metrics = {answer.budget.metric for _, _, answer in known}
    seconds = [choice.forecast.update_seconds for _, choice, _ in known if choice.forecast]
    ys: list[float]
    if len(accuracies) == len(known) and len(metrics) == 1:
        what, ys = "Accuracy", [accuracy.mean for accuracy in accuracies]
        low, high = min(a.low for a in accuracies), max(a.high for a in accuracies)
        up = Axis("accuracy, %", 0.01, bounds=(low - 0.01, high + 0.01))
    elif len(seconds) == len(known):
        what, ys = "Time", seconds
        up = Axis("predicted seconds of one update", 1.0)
    else:
        what, ys = "FLOPs", [float(choice.cost.flops.total) for _, choice, _ in known]
        flops = view.flop_unit((choice.cost.flops.total for _, choice, _ in known), least=1)
        up = Axis(f"FLOPs per update, {flops.name}", flops.scale)
    boards = {row.pair.board for row, _, _ in known}
    points = [
        Point(
            x=choice.cost.peak_memory_bytes,
            y=y,
            # The same network is there more than once: its row tells the board.
            label=view.printable(f"{row.pair.name} ({row.number})" if len(boards) > 1 else row.pair.name),
            number=row.number,
            text=view.printable(f"{_label(row)}: {choice.candidate.short}: {view.figures_text(choice)}"),
            kind="chosen" if row.pair.is_best else "fits",
            low=choice.accuracy.low if what == "Accuracy" and choice.accuracy else None,
            high=choice.accuracy.high if what == "Accuracy" and choice.accuracy else None,
        )
        for (row, choice, _), y in zip(known, ys, strict=True)
    ]
    title = f"{what} against memory"
    return scatter(points, across, up, title=title, description=f"{title} of each answer's choice.")


def _label(row: Row) -> str:
    return f"{row.pair.name}, {row.pair.board}" if row.pair.board else row.pair.name
