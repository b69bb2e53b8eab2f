"""Several answers side by side in one page: of models, devices or dates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from advisor.records import Evaluation, Recommendation
from advisor.report import view
from advisor.report.charts import Axis, Point, scatter
from advisor.report.explain import asked
from advisor.report.first_screen import Headline, headline
from advisor.report.html import environment


@dataclass(frozen=True, slots=True)
class Answer:
    """One of those that are compared."""

    number: int
    name: str  # the file's
    recommendation: Recommendation
    headline: Headline
    choice: Evaluation | None
    limits: str
    machine: str
    created: str


def render_comparison(named: Mapping[str, Recommendation]) -> str:
    """The page's text. Everything that comes from outside is escaped.

    Args:
        named: the answers by the names that they are told apart by, such as their files'.
    """
    answers = [
        Answer(
            number,
            name,
            recommendation,
            headline(recommendation),
            view.chosen(recommendation),
            dict(asked(recommendation))["Limits"],
            str(recommendation.provenance.get("machine", "unknown")),
            str(recommendation.provenance.get("created", "unknown"))[:10],
        )
        for number, (name, recommendation) in enumerate(named.items(), 1)
    ]
    template = environment().get_template("comparison.html")
    return template.render(answers=answers, chart=_chart(answers)).lstrip()


def _chart(answers: list[Answer]) -> Markup | None:
    """The choices: accuracy against memory where all are known in one metric, else FLOPs against memory."""
    found = [(answer, answer.choice) for answer in answers if answer.choice]
    if not found:
        return None
    memory = view.byte_unit(choice.cost.peak_memory_bytes for _, choice in found)
    across = Axis(f"peak memory of one update, {memory.name}", memory.scale)
    accuracies = [choice.accuracy for _, choice in found if choice.accuracy]
    metrics = {answer.recommendation.budget.metric for answer, _ in found}
    is_judged = len(accuracies) == len(found) and len(metrics) == 1
    if is_judged:
        low, high = min(a.low for a in accuracies), max(a.high for a in accuracies)
        up = Axis("accuracy, %", 0.01, bounds=(low - 0.01, high + 0.01))
    else:
        flops = view.flop_unit((choice.cost.flops.total for _, choice in found), least=1)
        up = Axis(f"FLOPs per update, {flops.name}", flops.scale)
    points = [
        Point(
            x=choice.cost.peak_memory_bytes,
            y=choice.accuracy.mean if is_judged and choice.accuracy else choice.cost.flops.total,
            label=view.printable(answer.name),
            number=answer.number,
            text=view.printable(f"{answer.name}: {choice.candidate.short}: {view.figures_text(choice)}"),
            kind="fits",
            low=choice.accuracy.low if is_judged and choice.accuracy else None,
            high=choice.accuracy.high if is_judged and choice.accuracy else None,
        )
        for answer, choice in found
    ]
    title = f"{'Accuracy' if is_judged else 'FLOPs'} against memory"
    return scatter(points, across, up, title=title, description=f"{title} of each answer's choice.")
