"""What both renderers show, worked out once from the records: order, names, verdicts, budgets.

Texts from outside (model and class names, paths) are data here; each renderer escapes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from advisor.records import (
    LAYER_TYPES,
    MULTIPLY_ADD_TYPES,
    NOT_PROBED,
    Accuracy,
    Budget,
    Candidate,
    DataSummary,
    Estimate,
    Evaluation,
    Levers,
    Recommendation,
    Target,
    Violation,
)
from advisor.solver import LIMIT, allowed_memory, figures_of, lever_words, limits_of
from advisor.units import format_bytes, format_flops, format_joules, format_percent, format_seconds

BROKEN_LIMIT = {
    "ram": "over RAM",
    "flops": "over FLOPs",
    "storage": "over storage",
    "step_time": "too slow",
    "total_time": "takes too long",
    "energy": "takes too much energy",
    "max_trainable": "trains too much",
    "max_overhead": "slows inference",
    "min_accuracy": "too inaccurate",
    "min_retained": "forgets too much",
    "execution": "failed its run",
}
MEMORY_PARTS = (
    "weights",
    "buffers",
    "gradients",
    "optimizer_state",
    "activations",
    "temporaries",
    "batch",
    "workspace",
    "cached",
)
_DRAWN = 0.01  # of an accuracy: from which on what was seen is told beside it
SHOWN = 24  # candidates in tables that are to be read, where there are many more
FLOP_PHASES = ("forward", "input_gradient", "weight_gradient", "optimizer")


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """One limit, and what the chosen candidate uses of it (or the least that any would)."""

    name: str
    used: float | None  # None: unknown
    allowed: float | None  # None: no limit set
    used_text: str
    allowed_text: str  # "no limit" where there is none
    at_least: bool = False  # the limit is a floor, not a ceiling
    remark: str = ""

    @property
    def share(self) -> float | None:
        """Used over allowed; None where either is unknown."""
        return None if self.used is None or not self.allowed else self.used / self.allowed


def ordered(recommendation: Recommendation) -> list[Evaluation]:
    """The chosen one, then those that fit from the best to the worst, then the rejected.

    Of both, first those that were probed, then those whose accuracy is predicted.
    """

    def key(evaluation: Evaluation) -> tuple[bool, bool, bool, float, int, int]:
        accuracy = evaluation.accuracy or evaluation.predicted
        return (
            evaluation.candidate.id != recommendation.recommended,
            not evaluation.fits,
            evaluation.accuracy is None,
            -accuracy.mean if accuracy else 0.0,
            evaluation.cost.flops.total,
            evaluation.cost.peak_memory_bytes,
        )

    return sorted(recommendation.evaluations, key=key)


def chosen(recommendation: Recommendation) -> Evaluation | None:
    """The recommended candidate's evaluation."""
    if recommendation.recommended is None:
        return None
    return recommendation.evaluation(recommendation.recommended)


def setting_text(candidate: Candidate) -> str:
    """`depthwise=skip rank=4, last 5 blocks`; empty where nothing was set."""
    setting = " ".join(f"{name}={value}" for name, value in candidate.said)
    return ", ".join([*([setting] if setting else []), *lever_words(candidate.levers)])


def name_parts(recommendation: Recommendation) -> list[tuple[str, str]]:
    """What the parts of candidates' names means: `lora-2, lora-4`: `rank`, `@last-3`: `last 3 blocks`."""
    candidates = [evaluation.candidate for evaluation in recommendation.evaluations]
    settings: dict[tuple[str, str], dict[str, None]] = {}
    for each in candidates:
        plain = replace(each, levers=Levers())
        if each.said:
            told = each.method, ", ".join(name for name, _ in each.said)
            settings.setdefault(told, {})[plain.short] = None
    levers = sorted({part for each in candidates for part in each.levers.described()})
    alone = [Candidate("", (), Levers.parse([part])) for part in levers]
    return [
        *((", ".join(names), told) for (_, told), names in settings.items()),
        *((each.short, ", ".join(lever_words(each.levers)) or "none of the blocks") for each in alone),
    ]


def main_ones(recommendation: Recommendation) -> list[Evaluation]:
    """What to show first of many, in order: the choice, the front, the best of each method, the next best."""
    evaluations = ordered(recommendation)
    if len(evaluations) <= SHOWN:
        return evaluations
    best: dict[str, str] = {}
    for evaluation in evaluations:
        best.setdefault(evaluation.candidate.method, evaluation.candidate.id)
    wanted = {recommendation.recommended, *recommendation.front, *best.values()}
    full = recommendation.full
    wanted |= {full.candidate.id} if full else set()
    spare = SHOWN - sum(evaluation.candidate.id in wanted for evaluation in evaluations)
    others = [e.candidate.id for e in evaluations if e.candidate.id not in wanted and e.fits]
    wanted |= set(others[: max(spare, 0)])
    return [evaluation for evaluation in evaluations if evaluation.candidate.id in wanted]


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit for a whole table, so that its figures can be compared at a glance."""

    name: str
    scale: float
    digits: int

    def show(self, value: float) -> str:
        """`1,020`, `0.21`, `<0.01`, `-` for nothing at all."""
        if not value:
            return "-"
        scaled, least = value / self.scale, 10.0**-self.digits
        return f"<{least:g}" if 0 < scaled < least else f"{scaled:,.{self.digits}f}"


def byte_unit(values: Iterable[float], least: float = 10) -> Unit:
    """The unit for a table of sizes; coarser, for an axis that says the limit as it was typed."""
    return _unit(values, ("B", "kB", "MB", "GB", "TB"), least)


def flop_unit(values: Iterable[float], least: float = 1000) -> Unit:
    """The unit for a table of FLOP counts; finer, for optimizers are small beside convolutions."""
    return _unit(values, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"), least)


def count_unit(values: Iterable[float]) -> Unit:
    """The unit for a table of counts: none."""
    return _unit(values, ("",), 1)


def how_probed_text(data: DataSummary) -> str:
    """What was trained on, and where, where that isn't images as they are on the processor: `, on cuda:0`."""
    seen = {"none": "", "flip": ", on mirror images, too", "standard": ", on random crops and mirror images"}
    return seen[data.augment] + (f", on {data.device}" if data.device != "cpu" else "")


def held_out_text(data: DataSummary, accuracy: Accuracy | None = None) -> str:
    """`250 held out`, or how every image came to be; of the accuracy, where one is given."""
    return held_out_texts(data, accuracy)[0]


def held_out_texts(data: DataSummary, accuracy: Accuracy | None = None) -> list[str]:
    """The same at length, and shorter."""
    every = data.validation_samples
    judged = (sum(accuracy.samples_by_class) if accuracy else 0) or every
    if data.folds > 1 and judged == every:
        return [f"each of {every:,} held out once in {data.folds} folds", f"{every:,} in {data.folds} folds"]
    return [f"{judged:,} held out"]


def split_text(recommendation: Recommendation, data: DataSummary, what: str = "") -> str:
    """`675 to train, 224 held out`: as many as judged what was judged on the most."""
    known = [item.accuracy for item in recommendation.evaluations if item.accuracy]
    most = max(known, key=lambda accuracy: sum(accuracy.samples_by_class), default=None)
    return f"{data.train_samples:,} {what}to train, {held_out_text(data, most)}"


def accuracy_text(accuracy: Accuracy | Estimate | None) -> str:
    """`71.3 % (69.2-73.1)`, or `-` where it is unknown."""
    if accuracy is None:
        return "-"
    return f"{percent(accuracy.mean)} ({interval_text(accuracy)})"


def figures_text(evaluation: Evaluation) -> str:
    """`96.3 % (93.3-98.0), 682 kB at its peak, 6.72 MFLOP per update, 6.44 kB to ship`."""
    known = _known_text(evaluation) or "accuracy unknown"
    return f"{known}, {costs_text(evaluation)}"


def costs_text(evaluation: Evaluation) -> str:
    """`682 kB at its peak, 6.72 MFLOP per update, 6.44 kB to ship`."""
    cost = evaluation.cost
    return (
        f"{format_bytes(cost.peak_memory_bytes)} at its peak, "
        f"{format_flops(cost.flops.total)} per update, {format_bytes(cost.delta_bytes)} to ship"
    )


def _known_text(evaluation: Evaluation) -> str:
    accuracy, predicted = evaluation.accuracy, evaluation.predicted
    if accuracy:
        known = accuracy_text(accuracy) + ("" if accuracy.finalist else ", trained for less")
        return known + (f", {percent(accuracy.retained.mean)} on old data" if accuracy.retained else "")
    return f"~{accuracy_text(predicted)}, predicted" if predicted else ""


def interval_text(accuracy: Accuracy | Estimate) -> str:
    """`69.2-73.1`, in percent."""
    return f"{accuracy.low * 100:.1f}-{accuracy.high * 100:.1f}"


def known_mean_text(evaluation: Evaluation) -> str:
    """As probed, marked `*` where that was cut short; or as predicted from the others, marked `~`."""
    if evaluation.accuracy is None:
        return f"~{percent(evaluation.predicted.mean)}" if evaluation.predicted else "-"
    return percent(evaluation.accuracy.mean) + ("" if evaluation.accuracy.finalist else "*")


def by_class_text(accuracy: Accuracy, recommendation: Recommendation, *, with_guess: bool = True) -> str:
    """What the one figure hides: known and new classes, the worst one, the mean over classes, guessing.

    `worst 'coat' 41 % of 23, mean 75.2 %, guessing 18.0 %`; empty where it hides nothing.
    """
    data, budget = recommendation.data, recommendation.budget
    parts = []
    if accuracy.known_classes is not None and accuracy.new_classes is not None:
        of_known, of_new = percent(accuracy.known_classes), percent(accuracy.new_classes)
        parts.append(f"{of_known} of known classes, {of_new} of new ones")
    worst = worst_class(accuracy, data)
    if worst is not None and data is not None and data.largest_class_share is not None:
        # Classes are as they were seen; the accuracy may have been drawn to what all candidates say.
        if accuracy.seen is not None and abs(accuracy.seen - accuracy.mean) >= _DRAWN:
            parts.append(f"seen {percent(accuracy.seen)}")
        parts.append(f"worst {worst[0]!r} {percent(worst[1], 0)} of {worst[2]}")
        if budget.metric != "balanced" and accuracy.balanced is not None:
            parts.append(f"mean {percent(accuracy.balanced.mean)}")
        if with_guess:
            parts.append(f"guessing {percent(data.guess(budget.metric))}")
    return ", ".join(parts)


def worst_class(accuracy: Accuracy, data: DataSummary | None) -> tuple[str, float, int] | None:
    """The class of which the least is right: its name, that share, and how many of it were judged."""
    if data is None or len(accuracy.recalls) != len(data.data_classes):
        return None
    each = zip(data.data_classes, accuracy.recalls, accuracy.samples_by_class, strict=False)
    known = [(name, share, count) for name, share, count in each if share is not None]
    return min(known, key=lambda found: found[1], default=None) if len(known) > 1 else None


def percent(share: float | None, digits: int = 1) -> str:
    """0.713 -> `71.3 %`; None -> `-`."""
    return "-" if share is None else format_percent(share, digits)


def points_text(share: float) -> str:
    """0.01 -> `1 point`; 0.025 -> `2.5 points`."""
    points = round(share * 100, 6)
    return f"{points:g} point{'s' * (points != 1)}"


def share_of(part: float, whole: float | None) -> float | None:
    """part / whole; None where there is no whole."""
    return part / whole if whole else None


def reason(violation: Violation) -> str:
    """The reason in words, with the numbers."""
    if violation.reason:
        return violation.reason
    limit = LIMIT["ram" if violation.limit == "execution" else violation.limit]
    show = percent if limit.at_least else limit.show
    value, allowed = show(violation.value), show(violation.allowed)
    return f"{BROKEN_LIMIT[violation.limit]}: {value}, allowed {allowed}"


def against_choice(evaluation: Evaluation, choice: Evaluation | None) -> str:
    """How a candidate that fits differs from the chosen one, in numbers."""
    if choice is None or evaluation is choice:
        return ""
    parts = []
    if evaluation.accuracy and choice.accuracy:
        points = (evaluation.accuracy.mean - choice.accuracy.mean) * 100
        parts.append(f"{points:+.1f} points" if abs(points) >= 0.05 else "same accuracy")
        old, its = evaluation.accuracy.retained, choice.accuracy.retained
        if old and its and abs(old.mean - its.mean) >= 0.0005:
            parts.append(f"{(old.mean - its.mean) * 100:+.1f} on old data")
    memory = evaluation.cost.peak_memory_bytes - choice.cost.peak_memory_bytes
    more = "+" if memory > 0 else "-"
    parts.append(f"{more}{format_bytes(abs(memory))} peak" if memory else "same peak")
    ratio = share_of(evaluation.cost.flops.total, choice.cost.flops.total)
    if ratio is not None:
        parts.append(f"{ratio:.2f} x FLOPs")
    return ", ".join(parts).replace("-", "\N{MINUS SIGN}")


def verdict_text(evaluation: Evaluation, choice: Evaluation | None) -> str:
    """Chosen, or why not: the limit that it breaks, or how it differs from the choice."""
    if not evaluation.fits:
        return reason(evaluation.violations[0])
    return "chosen" if evaluation is choice else against_choice(evaluation, choice) or "fits"


def more_of(evaluation: Evaluation) -> list[str]:
    """What else is to be known of it: how it was trained and judged, what it keeps, what it costs once."""
    accuracy, cost = evaluation.accuracy, evaluation.cost
    told = []
    if accuracy:
        if accuracy.learning_rate is not None:
            told.append(f"learning rate {accuracy.learning_rate:g}")
        if accuracy.updates:
            seeds = f" with each of {accuracy.seeds} seeds" if accuracy.seeds > 1 else ""
            told.append(f"{accuracy.updates} updates{seeds}")
        told.append(f"judged on {accuracy.samples:,}")
    if cost.cache_bytes:
        told.append(f"cache {format_bytes(cost.cache_bytes)}")
    if cost.setup_flops:
        told.append(f"{format_flops(cost.setup_flops)} once before")
    if f"{cost.inference_flops_ratio:.3g}" != "1":
        told.append(f"inference {cost.inference_flops_ratio:.3g} x the model's FLOPs")
    return told


def budget_lines(recommendation: Recommendation) -> list[BudgetLine]:
    """Every limit against the chosen candidate's use of it, set or not.

    Where nothing fits, against the least that any candidate would use.
    """
    budget, choice = recommendation.budget, chosen(recommendation)
    pool = [choice] if choice else list(recommendation.evaluations)
    if not pool:
        return []
    least_memory = min(pool, key=lambda item: item.cost.peak_memory_bytes)
    least_flops = min(pool, key=lambda item: item.cost.flops.total)
    least_delta = min(pool, key=lambda item: item.cost.delta_bytes)
    best = max(
        (item for item in pool if item.accuracy),
        key=lambda item: item.accuracy.mean if item.accuracy else 0.0,
        default=None,
    )

    def by(evaluation: Evaluation | None) -> str:
        return f"by {evaluation.candidate.short}" if evaluation and not choice else ""

    memory_remark = by(least_memory)
    if budget.ram_bytes is not None and budget.runtime_overhead_bytes:
        overhead = format_bytes(budget.runtime_overhead_bytes)
        taken = f"{format_bytes(budget.ram_bytes)} less {overhead} for the runtime"
        memory_remark = f"{memory_remark}; {taken}".removeprefix("; ")
    flops_remark = by(least_flops)
    if budget.fewest_flops and choice and choice.accuracy:
        good = f"within {points_text(budget.tolerance)} of the best"
        flops_remark = f"fewest {'of those as good, old data included' if choice.accuracy.retained else good}"
    elif budget.fewest_flops and choice:
        flops_remark = "fewest wanted"
    accuracy = best.accuracy if best else None
    retained = [item.accuracy.retained for item in pool if item.accuracy and item.accuracy.retained]
    most = max(retained, key=lambda old: old.mean, default=None)
    lines = [
        _line(
            "peak memory",
            least_memory.cost.peak_memory_bytes,
            allowed_memory(budget, least_memory.cost),
            format_bytes,
            memory_remark,
        ),
        _line(
            "FLOPs per update",
            least_flops.cost.flops.total,
            budget.flops,
            format_flops,
            flops_remark,
        ),
        _line(
            "to ship",
            least_delta.cost.delta_bytes,
            budget.storage_bytes,
            format_bytes,
            by(least_delta),
        ),
        *_set_limits(pool, budget),
        BudgetLine(
            budget.metric,
            accuracy.mean if accuracy else None,
            budget.min_accuracy,
            accuracy_text(accuracy) if accuracy else "unknown",
            "no limit" if budget.min_accuracy is None else f"at least {percent(budget.min_accuracy)}",
            at_least=True,
            remark=by(best),
        ),
    ]
    if most is not None:
        least = budget.min_retained
        limit = "no limit" if least is None else f"at least {percent(least)}"
        lines.append(BudgetLine("old data", most.mean, least, accuracy_text(most), limit, at_least=True))
    return lines


def _set_limits(pool: Sequence[Evaluation], budget: Budget) -> list[BudgetLine]:
    """Of what has a line only where it is limited: trained parameters, inference overhead."""
    lines = []
    for name, allowed in limits_of(budget).items():
        if name in ("max_trainable", "max_overhead"):
            least = min(value for item in pool if (value := figures_of(item, budget)[name]) is not None)
            lines.append(_line(LIMIT[name].what, least, allowed, LIMIT[name].show, ""))
    return lines


def layer_types_of(names: Iterable[str]) -> list[str]:
    """The layer types among the names, in the census's order; unknown ones last."""
    present = set(names)
    return [kind for kind in LAYER_TYPES if kind in present] + sorted(present - set(LAYER_TYPES))


def plainest(recommendation: Recommendation, method: str) -> Evaluation | None:
    """Of the method's candidates with the fewest levers the best one."""
    own = [item for item in ordered(recommendation) if item.candidate.method == method]
    return min(own, key=lambda item: len(item.candidate.levers.described()), default=None)


def nearest(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Of those that don't fit, first the one that has to come down the least."""

    def excess(evaluation: Evaluation) -> float:
        return max(_excess(violation) for violation in evaluation.violations)

    return sorted((item for item in evaluations if not item.fits), key=excess)


def untried_methods(recommendation: Recommendation) -> list[str]:
    """Those that fit and of which no candidate was tried."""
    fitting = [item for item in recommendation.evaluations if item.fits]
    tried = {item.candidate.method for item in fitting if item.accuracy}
    methods = dict.fromkeys(item.candidate.method for item in fitting)
    return [method for method in methods if method not in tried]


def evidence_text(recommendation: Recommendation) -> str:
    """What the choice does not rest on: methods that fit and were never tried; empty where all were."""
    fitting = [item for item in recommendation.evaluations if item.fits]
    count = sum(item.accuracy is not None for item in fitting)
    untried = untried_methods(recommendation)
    if not count or not untried:
        return ""
    names = ", ".join(untried)
    return f"{count} of {len(fitting)} candidates were tried, none of {names}: {why_untried(recommendation)}"


def tried_text(recommendation: Recommendation) -> str:
    """How many of those that fit were tried, and of which methods none was."""
    fitting = [item for item in recommendation.evaluations if item.fits]
    count = sum(item.accuracy is not None for item in fitting)
    all_methods = f"{count:,} of {len(fitting):,} candidates that fit were tried, some of every method"
    return evidence_text(recommendation) or all_methods


def why_untried(recommendation: Recommendation) -> str:
    """What stood against the candidates that fit and were not tried."""
    reasons = [e.probe_failure for e in recommendation.evaluations if e.fits and e.accuracy is None]
    found = [reason.removeprefix(NOT_PROBED) for reason in reasons if reason.startswith(NOT_PROBED)]
    if not found and all(reasons):
        return "their training failed"
    return found[0] if found else "allow more --probe-time"


def multiply_add_flops_per_sample(evaluation: Evaluation, batch_size: int) -> float | None:
    """FLOPs of convolution and linear layers, forward and backward, for one sample."""
    if batch_size < 1:
        return None
    flops = [cost.flops for kind, cost in evaluation.cost.by_layer_type.items() if kind in MULTIPLY_ADD_TYPES]
    return sum(item.forward + item.input_gradient + item.weight_gradient for item in flops) / batch_size


def grouped_notes(evaluations: Sequence[Evaluation]) -> dict[str, list[str]]:
    """Note on a cost -> the methods and settings that it holds for, whatever their levers."""
    grouped: dict[str, dict[str, None]] = {}
    for evaluation in evaluations:
        plain = replace(evaluation.candidate, levers=Levers()).short
        for note in evaluation.cost.notes:
            grouped.setdefault(note, {})[plain] = None
    return {note: list(names) for note, names in grouped.items()}


def summed_notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """The notes on costs, those that say the same of other layers and figures in one line."""
    alike: dict[str, list[tuple[str, list[str]]]] = {}
    for note, names in grouped_notes(evaluations).items():
        what = re.sub(r"\d+", "#", note.partition(": ")[2] or note)
        alike.setdefault(what, []).append((note, names))
    lines = []
    for notes in alike.values():
        who = ", ".join(dict.fromkeys(name for _, names in notes for name in names))
        more = f", and {len(notes) - 1} more like it" if len(notes) > 1 else ""
        lines.append(f"{notes[0][0]}{more} ({who})")
    return lines


def uncounted(evaluations: Iterable[Evaluation]) -> list[str]:
    """Operators that ran with no FLOP rule, in any candidate."""
    return sorted({name for evaluation in evaluations for name in evaluation.cost.uncounted_operators})


def measured_text(evaluation: Evaluation, budget: Budget) -> str:
    """What its run showed, before it was recommended, in one line; empty where there was none."""
    run, allowed = evaluation.measured, allowed_memory(budget, evaluation.cost)
    if run is None:
        return ""
    held = run.cap_bytes is not None and allowed is not None
    if not run.survived:
        limit = f"{format_bytes(allowed)} for the update" if held and allowed else "no memory limit"
        return f"did not survive a run under {limit}: {run.failure or 'the process ended'}"
    under = f"given {format_bytes(allowed)} for the update" if held and allowed else "without a memory limit"
    return (
        f"ran, {under}: {format_bytes(run.peak_memory_bytes)} at its peak, "
        f"{format_seconds(run.update_seconds)} per update; the process that ran it took "
        f"{format_bytes(run.runtime_bytes)} besides, as it loads all of peft-advisor"
    )


def time_of(evaluation: Evaluation, recommendation: Recommendation) -> tuple[str, str] | None:
    """An update's seconds, and what is to be known of them; None: unknown."""
    budget, forecast, run = recommendation.budget, evaluation.forecast, evaluation.measured
    step, total = budget.step_seconds, budget.total_seconds
    of_step = f"of {format_seconds(step)} " if step is not None else ""
    if forecast is not None and recommendation.target is not None:
        parts = [f"{of_step}{on_target(recommendation.target)} (predicted)"]
        if forecast.tune_seconds is not None:
            of_total = f" of {format_seconds(total)}" if total is not None else ""
            parts.append(f"{format_seconds(forecast.tune_seconds)}{of_total} in all")
        return format_seconds(forecast.update_seconds), "; ".join(parts)
    if run is None or not run.survived:
        return None
    return format_seconds(run.update_seconds), f"{of_step}on this machine"


def energy_of(evaluation: Evaluation, recommendation: Recommendation) -> tuple[str, str] | None:
    """An update's joules on the target, and those of all; None: unknown."""
    forecast, total = evaluation.forecast, recommendation.budget.total_joules
    if forecast is None or forecast.update_joules is None or recommendation.target is None:
        return None
    parts = [f"{on_target(recommendation.target)} (predicted)"]
    if forecast.tune_joules is not None:
        of_total = f" of {format_joules(total)}" if total is not None else ""
        parts.append(f"{format_joules(forecast.tune_joules)}{of_total} in all")
    return format_joules(forecast.update_joules), "; ".join(parts)


def on_target(target: Target) -> str:
    """`on pi4`, or `here`, where the profile's file is called so."""
    return "here" if target.name == "here" else f"on {target.name}"


def printable(text: str) -> str:
    """The text with control, bidirectional and unpaired characters replaced: safe on one line."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\ufffd"
        for character in text
    )


def _excess(violation: Violation) -> float:
    """How many times too large; of a floor, too small."""
    parts = (violation.value, violation.allowed)
    over, under = reversed(parts) if violation.limit in ("min_accuracy", "min_retained") else parts
    return over / under if under else float("inf")


def _unit(values: Iterable[float], names: tuple[str, ...], least: float) -> Unit:
    largest = max(values, default=0)
    power = max((n for n in range(len(names)) if largest >= least * 1000**n), default=0)
    scaled = largest / 1000**power
    digits = 0 if power == 0 or scaled >= 1000 else 1 if scaled >= 100 else 2
    return Unit(names[power], 1000.0**power, digits)


def _line(
    name: str, used: float, allowed: float | None, show: Callable[[float], str], remark: str
) -> BudgetLine:
    limit = "no limit" if allowed is None else show(allowed)
    return BudgetLine(name, used, allowed, show(used), limit, remark=remark)
