"""What every candidate costs that is worth pricing, and which limits it breaks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

import advisor.solver
import advisor.story.plans
from advisor.costs import Simulator, without_collector
from advisor.device.profile import Clock, DeviceProfile
from advisor.errors import ModelError
from advisor.methods import get_method, learning_rates, methods
from advisor.models.fingerprint import code_fingerprint
from advisor.probes import key_of
from advisor.records import Budget, Candidate, Cost, Evaluation, Forecast, Levers
from advisor.solver import allowed_memory, limits_of, violations
from advisor.store import Store
from advisor.story.candidates import Pricing, Proposals
from advisor.story.plans import worth_trying
from advisor.story.situation import Progress, Request, Story
from advisor.training.epochs import Length
from advisor.units import format_bytes, format_flops

_log = logging.getLogger(__name__)


def simulator_for(story: Story) -> Simulator:
    """What prices candidates of the story's model."""
    augment = story.task.dataset.augment if story.task is not None else "none"
    return Simulator(
        story.loaded.module,
        story.census,
        story.images,
        unlabelled=story.unlabelled_images,
        augment=augment,
    )


def cost_all(
    story: Story,
    request: Request,
    simulator: Pricing,
    budget: Budget,
    progress: Progress = lambda stage, fraction, running: None,
    store: Store | None = None,
    device: DeviceProfile | None = None,
) -> list[Evaluation]:
    """Price what is worth pricing of every method asked for, with the limits that each breaks.

    With a device's profile each has its seconds there, too. What can't be priced goes into the story,
    with the reason.

    Raises:
        ModelError: nothing can be.
    """
    if not story.census.parameters:
        raise ModelError(f"{story.loaded.name} has no weights that could be trained")
    proposals = Proposals(
        simulator,
        story.census,
        batch_size=request.batch_size,
        allowed_bytes=allowed_memory(budget),
        kernel_bytes=budget.kernel_bytes,
        images=story.images,
        store=store,
    )
    levers = Levers(optimizer=request.optimizer)  # type: ignore[arg-type]
    unseen = story.task is not None and story.task.situation.scenario == "new-classes"
    names = tuple(methods()) if request.methods is None else request.methods
    evaluations: dict[Candidate, Evaluation] = {}
    clock = Clock(device) if device is not None else None
    if device is not None and device.warning:
        story.warnings.append(f"--target {request.target}: {device.warning}")

    def keep(proposed: Iterable[tuple[Candidate, Cost]], done: float) -> None:
        for candidate, cost in proposed:
            forecast = _forecast(clock, candidate, cost, story, request) if clock is not None else None
            broken = violations(budget, cost, forecast=forecast)
            evaluations[candidate] = Evaluation(
                candidate, replace(cost, work=()), violations=broken, forecast=forecast
            )
            progress("cost", done, candidate.short)
            flops, memory = format_flops(cost.flops.total), format_bytes(cost.peak_memory_bytes)
            _log.debug("priced %s: %s, %s per update", candidate.id, memory, flops)

    for done, name in enumerate(names):
        method = get_method(name)
        if method.needs_data:
            with without_collector():
                for plan in _plans(story, request, proposals, simulator, levers, budget, store):
                    keep(proposals.of(method, [dict(plan.setting)], plan.levers), done / len(names))
            continue
        if unseen and not method.learns_classes:
            story.not_applicable[name] = "it can't learn classes that the model has never seen"
            continue
        settings = list(method.settings(story.census, request.ranks))
        if not settings:
            story.not_applicable[name] = f"the model has nothing for it: {method.summary}"
            continue
        with without_collector():
            keep(proposals.of(method, settings, levers), done / len(names))
    progress("cost", 1.0, "")
    story.not_applicable |= proposals.failures
    story.warnings += [
        f"peft-advisor itself failed on {names}: {fault}; please report it"
        for fault, names in _by_reason(proposals.faults)
    ]
    if not evaluations:
        reasons = "; ".join(dict.fromkeys([*story.not_applicable.values(), *proposals.faults.values()]))
        raise ModelError(f"no method can be run on this model: {reasons}")
    return list(evaluations.values())


def _plans(
    story: Story,
    request: Request,
    proposals: Proposals,
    simulator: Pricing,
    levers: Levers,
    budget: Budget,
    store: Store | None,
) -> list[Candidate]:
    """Per-layer plans for the images and the limits; none without images."""
    if story.task is None or story.census.head is None:
        return []
    module, dataset = story.loaded.module, story.task.dataset
    key = {
        "gradients": key_of(module, dataset.normalisation, dataset.train),
        "costs": simulator.key(),
        "solver": code_fingerprint(module, advisor.story.plans, advisor.solver),
        "question": [request.batch_size, levers.described(), sorted(limits_of(budget).items()), budget.warn],
    }
    given = module, story.census, dataset, request.batch_size, levers, budget

    def found() -> dict[str, list[str]]:
        return {"ids": [candidate.id for candidate in worth_trying(proposals.price, *given)]}

    known = store.remembered("plans", key, found) if store is not None else found()
    return [Candidate.parse(name) for name in known["ids"]]


def _forecast(clock: Clock, candidate: Candidate, cost: Cost, story: Story, request: Request) -> Forecast:
    """Its seconds on the target; of the whole fine-tune where there is data."""
    if story.task is None:
        return clock.forecast(cost)
    images, held_out = len(story.task.dataset.train), len(story.task.dataset.validation)
    rate = 1.0 if learning_rates(candidate) else None  # only whether there is one matters
    length = Length.of(candidate, rate, images, request.batch_size, request.epochs)
    # The held-out ones are judged before the first epoch, and after each.
    judged = (1 + length.epochs) * held_out
    return clock.forecast(cost, updates=length.updates, batch_size=request.batch_size, judged=judged)


def _by_reason(faults: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each reason with what it befell: the first, and how many more."""
    grouped: dict[str, list[str]] = {}
    for name, reason in faults.items():
        grouped.setdefault(reason, []).append(name)
    return [
        (reason, names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
        for reason, names in grouped.items()
    ]
