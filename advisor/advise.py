"""The whole story on one page: load, census, candidates, cost, race, solve, verify."""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Unpack

import torch
from torch import nn

import advisor.plans
import advisor.solver
from advisor.asked import Asked, asked
from advisor.candidates import Pricing, Proposals
from advisor.costs import (
    Simulator,
    WaitingChild,
    available_bytes,
    fvcore_forward_flops,
    return_freed_memory,
    without_collector,
)
from advisor.costs.measure import measure
from advisor.data import Dataset
from advisor.device.profile import Clock, DeviceProfile, read_profile, target_of
from advisor.device.runtime import HereRuntime
from advisor.errors import AdvisorError, InputError, ModelError, first_line
from advisor.interrupts import stoppable
from advisor.machine import is_ample
from advisor.methods import get_method, learning_rates, methods
from advisor.models.fingerprint import code_fingerprint
from advisor.plans import worth_trying
from advisor.probes import (
    CrossValidation,
    Trainer,
    by_class,
    class_of_recall,
    executor_for,
    fold_count,
    in_quick_layout,
    key_of,
    metric_of,
    training_of,
)
from advisor.probes.race import race
from advisor.records import (
    LAYER_TYPES,
    Accuracy,
    Budget,
    Candidate,
    Cost,
    DataSummary,
    Evaluation,
    Forecast,
    LayerTypeSummary,
    Levers,
    MethodCard,
    ModelSummary,
    Recommendation,
    Runtime,
    Target,
)
from advisor.situation import Progress, Request, Story, Task, prepare, versions
from advisor.solver import (
    Verdict,
    allowed_memory,
    answer,
    cheapest_first,
    enforced_memory,
    judged,
    limits_of,
    pareto_front,
    relaxations,
    solve,
    violations,
)
from advisor.store import Store
from advisor.training.accelerator import CPU, accelerator_for
from advisor.training.epochs import Length
from advisor.units import format_bytes, format_flops, format_percent, format_seconds

_log = logging.getLogger(__name__)
_LEAST_PROBING, _MOST_PROBING, _ROUNDED = 60.0, 1200.0, 30.0  # seconds
_TIMED = 4  # candidates, where seconds are preferred: each run takes seconds itself
# Of the memory that is left beside the images: a training in this process; what probes remember.
_SAFE_SHARE, _REMEMBERED_SHARE = 0.25, 0.25


def recommend(
    model: str | nn.Module,
    budget: Budget | None = None,
    request: Request | None = None,
    progress: Progress = lambda stage, fraction, running: None,
    **given: Unpack[Asked],
) -> Recommendation:
    """Which method to fine-tune this model with, at which setting, and what it costs.

    `recommend(model, ram="512MB", data=(images, labels))`: what is asked is given in keywords, or as a
    `Budget` and a `Request`.

    Args:
        model: anything that `load_model` takes, or a module.
        budget: the limits, in place of their keywords; none by default.
        request: what else is asked, in place of its keywords.
        progress: called often, with the stage, the fraction of it that is done, and what is running; at the
            stage `lead`, with what would be chosen if nothing else were probed.
        ram: most memory of an update, such as `512MB` (10^6) or `512MiB` (2^20), or a number of bytes.
        flops: most FLOPs of an update, such as `2GFLOPs`, or a number; `fewest`: no limit, but the fewest.
        storage: most bytes to ship.
        step_time: most time of an update on the target, or else on this machine, such as `50ms`, or a number
            of seconds.
        total_time: most time of the whole fine-tune on the target.
        energy: most energy of it, such as `500J` or `2Wh`, or a number of joules.
        max_trainable: most parameters that are trained, such as `100k`.
        max_overhead: most FLOPs that an inference may take more once merged, in percent; `merge`: none.
        metric: what is to be high: `accuracy`, `balanced` or `recall:CLASS`.
        min_accuracy: the least, in that metric, as a fraction.
        min_retained: the least accuracy on the old data, as a fraction.
        tolerance: points below the best accuracy that count as as good; 0.5 by default.
        prefer: which cost decides then: `ram`, `flops`, `storage` or `time`.
        warn: limits that are told where they are broken, and exclude nothing.
        runtime_overhead: what the runtime takes of `ram`.
        ram_includes_runtime: whether that is found out, and counted within `ram`; by default with a target.
        data: images of the new world, with their classes: `(images, labels)`, arrays or tensors (N, H, W),
            (N, H, W, C) or (N, C, H, W), bytes or floats in [0, 1]; a Dataset; a dict with either for `train`
            and `val`; a folder's path or whatever else `--data` takes. None: costs alone.
        labels: the table that tells the classes, or which folders do.
        groups: a table or a pattern of names: what belongs together.
        class_names: the model's, in the order of its outputs.
        data_classes: that the data must have, in that order.
        normalisation: mean and standard deviation by channel, of images in [0, 1].
        framing: how images of other sizes are cropped and resized.
        resize: that part of it: `center`, `squash` or `border`.
        channel_order: `rgb` or `bgr`.
        orientation: images are turned as their EXIF says (`exif`), or left as they are `stored`.
        look_over: tell where the model reads images otherwise than in its training.
        strict: what is wrong with the data is an error.
        augment: train on images as they are (`none`), on their mirror images, too (`flip`), or on random
            crops and their mirror images (`standard`).
        rehearse: corrupt the images first, such as `fog:3`.
        retain: old data, to tell what is forgotten.
        unlabelled: more new images, for methods that look at no labels.
        scenario: `shift` or `new-classes`; `auto` tells from the classes.
        train_images: to train on at most.
        input_size: (channels, height, width); None: the model's own, or the images'.
        batch_size: images of an update.
        target: the profile of the device that the advice is for, which `device measure` wrote.
        arch: the network, where the model's file holds weights alone.
        trust: whether a model's file may run code.
        methods: their names; None: all.
        ranks: of those methods that have one.
        optimizer: `adam`, `adamw`, `momentum` or `sgd`.
        probe_seconds: for the probes, or a time such as `5m`; `auto`: of one full fine-tune; None: no probes.
        epochs: of a whole fine-tune.
        store: a file in which probes and costs are kept; None: nowhere.
        executor: what runs the probes: `here`, `local:2`, `dask://HOST:PORT` or `ray`.
        device: what they train on: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`, a GPU where there is one. What
            an update costs is not the GPU's, but that of the device that the advice is for.
        verify: run the choice under the limit before it is recommended.
        seed: of all that is drawn.
        command: what reproduces it, for the report.

    Returns:
        The recommendation; `recommended` is None where nothing fits, or nothing is worth doing (`outcome`).

    Raises:
        InputError: the model, the data or what is asked can't be used.
    """
    budget, request = asked(budget, request, given)
    with ExitStack() as cleanup:
        waiting = None
        if request.verify and is_ample():
            # It imports while candidates are priced: the same question asked again should wait for little.
            with suppress(OSError):  # verification will tell why
                waiting = WaitingChild(early=True)
                cleanup.callback(waiting.stop)
        return _recommend(model, budget, request, progress, waiting, cleanup)


def _recommend(
    model: str | nn.Module,
    budget: Budget,
    request: Request,
    progress: Progress,
    waiting: WaitingChild | None,
    cleanup: ExitStack,
) -> Recommendation:
    if request.data is None and budget.metric != "accuracy":
        raise InputError("--metric is how answers on images are judged: give --data, too")
    device, target = _target(request)
    if budget.ram_includes_runtime is None and device is not None and not budget.runtime_overhead_bytes:
        budget = replace(budget, ram_includes_runtime=budget.ram_bytes is not None)
    if budget.total_seconds is not None and (device is None or request.data is None):
        raise InputError(
            "--total-time is told from a device's profile and the data: give --target and --data"
        )
    if budget.total_joules is not None and (device is None or request.data is None):
        raise InputError("--energy is told from a device's profile and the data: give --target and --data")
    if budget.total_joules is not None and device is not None and device.watts is None:
        raise InputError(
            f"--energy: the device of --target {request.target} didn't tell its power when it was "
            "measured, so no joules are known; leave out --energy"
        )
    with Store(request.store) as store:
        lean = None
        is_given = device is not None or budget.runtime_overhead_bytes
        if not is_given and (budget.ram_includes_runtime or request.verify):
            lean = HereRuntime(store)
            cleanup.callback(lean.stop)
            if not is_ample():
                with suppress(AdvisorError):  # who needs the figure will tell
                    lean.footprint()
        story = prepare(model, request, progress, store)
        if story.task is not None:
            class_of_recall(budget.metric, story.task.dataset.class_names)  # a mistyped one costs no time
        runtime = None
        if budget.ram_includes_runtime:
            budget, runtime = _with_runtime(budget, _runtime(lean, device, target, budget, story, request))
        simulator = simulator_for(story)
        _part_done()
        evaluations = cost_all(story, request, simulator, budget, progress, store, device)
        story.base_forward_flops = simulator.forward_flops()
        data_summary = None
        _part_done()
        if story.task is not None:
            evaluations, data_summary = _probe_all(
                story, story.task, evaluations, budget, request, progress, store
            )
        with suppress(AdvisorError):  # it was not asked for
            runtime = runtime or _runtime(lean, device, target, budget, story, request)
        story.warnings += [store.trouble] if store.trouble else []
    _part_done()
    chosen, evaluations, verdict = _verify(
        story, evaluations, budget, data_summary, request, progress, waiting
    )
    if chosen is not None:
        story.warnings[:0] = [
            f"{chosen.candidate.short}: {violation.reason}" for violation in chosen.violations
        ]
        if budget.step_seconds is not None and chosen.update_seconds is None:
            story.warnings.insert(0, "whether --step-time is met is unknown: the choice was not run")
    found = replace(
        _summary(story, evaluations, request),
        budget=budget,
        data=data_summary,
        runtime=runtime,
        target=target,
        recommended=chosen.candidate.id if chosen else None,
        outcome=verdict.outcome if chosen or not verdict.choices else "none",
        answer=_first_said(data_summary)
        + (verdict.reason or answer(chosen, evaluations, budget, data_summary, runtime)),
        front=tuple(e.candidate.id for e in pareto_front([e for e in evaluations if e.fits])),
        # Where nothing is worth using although it fits, no limit stands in the way.
        relaxations=() if verdict.reason else relaxations(chosen, evaluations, budget, data_summary),
        warnings=tuple(story.warnings),
    )
    return _seen_closely(found, simulator)


def _part_done() -> None:
    """Where little memory is left, what one part of the work held must not add to the next one's peak."""
    if not is_ample():
        return_freed_memory()


def _target(request: Request) -> tuple[DeviceProfile | None, Target | None]:
    """The device that the advice is for, and what an answer says of it; neither: this machine."""
    if request.target is None:
        return None, None
    device = read_profile(str(request.target))
    return device, target_of(str(request.target), device)


def _runtime(
    lean: HereRuntime | None,
    device: DeviceProfile | None,
    target: Target | None,
    budget: Budget,
    story: Story,
    request: Request,
) -> Runtime | None:
    """What is resident besides the update. Raises AdvisorError where it can't be measured."""
    if budget.runtime_overhead_bytes:
        return Runtime(budget.runtime_overhead_bytes, "")
    on_their_way = request.batch_size * math.prod(story.census.input_size)  # images, a byte a channel
    if device is not None and target is not None:
        return Runtime(device.runtime_bytes + on_their_way, target.name, device.kernel_bytes)
    if lean is None:
        return None
    here = lean.footprint()
    return Runtime(here.bytes + on_their_way, "here", here.kernel_bytes)


def _with_runtime(budget: Budget, runtime: Runtime | None) -> tuple[Budget, Runtime]:
    """The budget with the runtime's part taken off its RAM. Raises InputError where that leaves nothing."""
    assert runtime is not None  # noqa: S101 - it was asked for
    if runtime.bytes >= (budget.ram_bytes or 0):
        where = runtime.where if runtime.where == "here" else f"on {runtime.where}"
        raise InputError(
            f"the runtime alone (Python, PyTorch, Pillow) takes {format_bytes(runtime.bytes)} {where}, more "
            f"than --ram {format_bytes(budget.ram_bytes or 0)}: no update fits beside it; give more --ram, "
            "or a leaner runtime's figure with --target or --runtime-overhead"
        )
    return replace(budget, runtime_overhead_bytes=runtime.bytes, kernel_bytes=runtime.kernel_bytes), runtime


def profile(
    model: str | nn.Module,
    request: Request | None = None,
    progress: Progress = lambda stage, fraction, running: None,
) -> Recommendation:
    """Every method's cost on this model, by layer type; nothing is recommended.

    Raises:
        InputError: the model or the request can't be used.
    """
    request = replace(request or Request(), data=None)
    device, target = _target(request)
    with Store(request.store) as store:
        story = prepare(model, request, progress, store)
        simulator = simulator_for(story)
        evaluations = cost_all(story, request, simulator, Budget(), progress, store, device)
        story.warnings += [store.trouble] if store.trouble else []
    story.base_forward_flops = simulator.forward_flops()
    front = tuple(evaluation.candidate.id for evaluation in pareto_front(evaluations))
    found = replace(
        _summary(story, evaluations, request),
        front=front,
        warnings=tuple(story.warnings),
        target=target,
    )
    return _seen_closely(found, simulator)


def _seen_closely(found: Recommendation, simulator: Simulator) -> Recommendation:
    """With what the choice, and full fine-tuning, do layer by layer and moment by moment."""
    shown = {found.recommended, found.full.candidate.id if found.full else None}

    def seen(evaluation: Evaluation) -> Evaluation:
        if evaluation.candidate.id not in shown:
            return evaluation
        try:
            by_layer, timeline = simulator.closely(evaluation.candidate, found.batch_size)
        except Exception:  # noqa: BLE001 - the answer stands without it
            _log.debug("no close look at %s", evaluation.candidate.id, exc_info=True)
            return evaluation
        return replace(evaluation, cost=replace(evaluation.cost, by_layer=by_layer, timeline=timeline))

    return replace(found, evaluations=tuple(map(seen, found.evaluations)))


def simulator_for(story: Story) -> Simulator:
    """What prices candidates of the story's model."""
    augment = story.task.dataset.augment if story.task is not None else "none"
    return Simulator(
        story.loaded.module,
        story.census,
        _images(story),
        unlabelled=_unlabelled(story),
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
        images=_images(story),
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
        "solver": code_fingerprint(module, advisor.plans, advisor.solver),
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


def _probe_all(
    story: Story,
    task: Task,
    evaluations: list[Evaluation],
    budget: Budget,
    request: Request,
    progress: Progress,
    store: Store,
) -> tuple[list[Evaluation], DataSummary]:
    """Race the candidates that the limits admit."""
    dataset, situation = task.dataset, task.situation
    base: Accuracy | None = None
    train, held_out, folds = len(dataset.train), dataset.validation, 1
    seconds, probes_run, probes_recalled = 0.0, 0, 0
    if request.probe_seconds is not None:
        trainer, folds = _trainer(story, task, request)
        train, held_out = len(trainer.dataset.train), trainer.dataset.validation
        fitting = [evaluation for evaluation in cheapest_first(evaluations, budget) if evaluation.fits]
        most = _SAFE_SHARE * _left(dataset) if trainer.accelerator == CPU else math.inf
        peaks = {each.candidate: each.cost.peak_memory_bytes for each in evaluations}
        trainings = {each.candidate: training_of(each.candidate, story.census) for each in fitting}
        # Trained here without the levers that only spare memory, a candidate takes more.
        risky = {its for one, its in trainings.items() if max(peaks[one], peaks.get(its, 0)) > most}
        updates = request.epochs * max(train // request.batch_size, 1)
        with executor_for(request.executor, trainer, risky.__contains__) as executor:
            result = race(
                trainer,
                {evaluation.candidate: evaluation.cost for evaluation in fitting},
                seconds=_probe_seconds(request, trainer, evaluations, most, updates, store, progress),
                updates=updates,
                seed=request.seed,
                new_head=situation.head_replaced,
                metric=metric_of(budget.metric, held_out.labels, dataset.class_names, situation.label_map),
                min_retained=budget.min_retained,
                unaffordable=[evaluation.candidate for evaluation in evaluations if not evaluation.fits],
                store=store,
                key=trainer.key(),
                executor=executor,
                report=lambda fraction, running: progress("probe", fraction, running),
                lead=lambda best, told: progress(
                    "lead", 0.0, f"{best.short}, about {format_percent(told.mean, 0)}"
                ),
            )
        progress("probe", 1.0, "")
        story.warnings[:0] = result.warnings
        known = situation.classes - situation.new_classes

        def told(accuracy: Accuracy | None) -> Accuracy | None:
            if accuracy is None:
                return None
            return by_class(accuracy, held_out.labels, held_out.groups, situation.label_map, known)

        base, seconds = told(result.base), result.seconds
        probes_run, probes_recalled = result.probes_run, result.probes_recalled
        evaluations = [
            replace(
                evaluation,
                accuracy=told(result.accuracies.get(evaluation.candidate)),
                predicted=result.predicted.get(evaluation.candidate),
                probe_failure=result.failures.get(evaluation.candidate, ""),
                violations=violations(
                    budget,
                    evaluation.cost,
                    result.accuracies.get(evaluation.candidate),
                    forecast=evaluation.forecast,
                ),
            )
            for evaluation in evaluations
        ]
    summary = DataSummary(
        source=dataset.source,
        scenario=situation.scenario,
        classes=len(dataset.class_names),
        new_classes=situation.new_classes,
        train_samples=train,
        validation_samples=len(held_out),
        folds=folds,
        base_accuracy=base,
        probe_seconds=seconds,
        probes_run=probes_run,
        probes_recalled=probes_recalled,
        class_names=request.class_names,
        mean=dataset.normalisation.mean,
        std=dataset.normalisation.std,
        crop=dataset.framing.crop,
        interpolation=dataset.framing.interpolation,
        crop_mode=dataset.framing.mode,
        channel_order=dataset.framing.order,
        orientation=dataset.framing.orientation,
        labels=request.labels,
        groups=request.groups,
        findings=dataset.findings,
        unreadable_samples=dataset.unreadable,
        augment=dataset.augment,
        device=accelerator_for(request.device).described,
        rehearse=request.rehearse,
        retain=request.retain,
        unlabelled=request.unlabelled,
        unlabelled_samples=_unlabelled(story),
        largest_class_share=_largest_share(held_out.labels),
        data_classes=dataset.class_names,
    )
    return evaluations, summary


def _probe_seconds(
    request: Request,
    trainer: Trainer,
    evaluations: Sequence[Evaluation],
    most_bytes: float,
    updates: int,
    store: Store,
    progress: Progress,
) -> float:
    """What the probes may take: as asked, or what a fine-tune of every weight would take on this machine.

    That is so whatever the limits admit: they are the device's. Where it might not fit into this machine's
    memory, or isn't asked about, the one of those that train and do fit that has most FLOPs is timed.
    """
    if request.probe_seconds != "auto":
        assert request.probe_seconds is not None  # noqa: S101 - the caller probes
        return request.probe_seconds
    key = trainer.key() | {"updates": updates, "of": [evaluation.candidate.id for evaluation in evaluations]}
    known = store.get("auto", key)
    if known is not None:
        return float(known["seconds"])
    able = [e for e in evaluations if learning_rates(e.candidate) and e.cost.peak_memory_bytes <= most_bytes]
    full = (e for e in able if e.candidate == Candidate("full"))
    timed = next(full, None) or max(able, default=None, key=lambda e: e.cost.flops.total)
    seconds = _LEAST_PROBING
    if timed is not None:
        progress("probe", 0.0, f"timing {timed.candidate.id}")
        with suppress(Exception):  # its probe will say why
            seconds = updates * trainer.time_updates(training_of(timed.candidate, trainer.census))[1]
    # Rounded, so that how busy the machine is hardly matters.
    seconds = min(max(round(seconds / _ROUNDED) * _ROUNDED, _LEAST_PROBING), _MOST_PROBING)
    store.put("auto", key, {"seconds": seconds})
    progress("probe", 0.0, f"for {format_seconds(seconds)}, as long as one full fine-tune")
    return seconds


def _images(story: Story) -> int:
    """How many there are to train on."""
    return len(story.task.dataset.train) if story.task is not None else 0


def _unlabelled(story: Story) -> int:
    """How many images there are that nobody has labelled."""
    found = story.task.dataset.unlabelled if story.task is not None else None
    return len(found) if found is not None else 0


def _first_said(data: DataSummary | None) -> str:
    """What comes before any fine-tuning, where the images, or how they are read, are wrong."""
    wrong = data.error if data else None
    return f"First of all: {wrong.text}. If that is as it should be: " if wrong else ""


def _largest_share(labels: torch.Tensor) -> float:
    """Of the most frequent label: what always giving the same answer gets right."""
    return float(labels.unique(return_counts=True)[1].max()) / len(labels)


def _left(dataset: Dataset) -> int:
    """Bytes that are available beside the images, which may be decoded in parts and joined."""
    images = sum(math.prod(part.undecoded.shape) for part in dataset.parts)
    return max(available_bytes() - 2 * images, 0)


def _trainer(story: Story, task: Task, request: Request) -> tuple[Trainer, int]:
    """What the race trains with, and on how many splits: on several where images are few."""
    module, census = in_quick_layout(story.loaded.module, story.census), story.census
    folds, accelerator = fold_count(task.dataset), accelerator_for(request.device)
    given = module, census, task.dataset, request.batch_size
    remembered = int(_REMEMBERED_SHARE * _left(task.dataset))
    if folds == 1:
        return Trainer(*given, accelerator=accelerator, remembered=remembered), 1
    return CrossValidation(*given, folds, task.imprinted_from, accelerator, remembered), folds


def _verify(
    story: Story,
    evaluations: list[Evaluation],
    budget: Budget,
    data: DataSummary | None,
    request: Request,
    progress: Progress,
    waiting: WaitingChild | None,
) -> tuple[Evaluation | None, list[Evaluation], Verdict]:
    """Run the choice in a child process under the memory limit; if it breaks a limit there, the next one.

    Where seconds come first, the first few of those that may be chosen are timed before the choice is made.
    """
    verdict = solve(evaluations, budget, data)
    if not request.verify or not story.loaded.has_values:
        return (verdict.choices[0] if verdict.choices else None), judged(evaluations, budget), verdict
    allowed = enforced_memory(budget)
    is_timed_here = budget.prefer == "time" and request.target is None
    to_time = list(verdict.choices[:_TIMED]) if is_timed_here else []
    told: list[str] = []
    # A limit on memory, and a target, are those of another device than the one that trained probes.
    is_for_here = allowed is None and request.target is None
    device = accelerator_for(request.device).measured_on if is_for_here else "cpu"
    tried = 0
    chosen: Evaluation | None = None
    while to_time or verdict.choices:
        evaluation = to_time.pop(0) if to_time else verdict.choices[0]
        candidate = evaluation.candidate
        if evaluation.measured is not None:
            chosen = evaluation
            break
        progress("verify", tried / (tried + 1), candidate.short)
        tried += 1
        try:
            with stoppable():
                measured = measure(
                    story.loaded.module,
                    story.census,
                    candidate,
                    request.batch_size,
                    allowed_bytes=enforced_memory(budget, evaluation.cost),
                    cache_bytes=evaluation.cost.cache_bytes,
                    images=_images(story),
                    device=device,
                    waiting=waiting if tried == 1 else None,
                )
        # What goes wrong with a run says nothing against the answer that was found.
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
            _log.debug("running %s failed", candidate.id, exc_info=True)
            told.append(_not_run(candidate, error))
            chosen = verdict.choices[0]
            break
        ran = replace(evaluation, measured=measured)
        peak, seconds = format_bytes(measured.peak_memory_bytes), format_seconds(measured.update_seconds)
        _log.debug("ran %s: %s at the allocator's peak, %s per update", candidate.id, peak, seconds)
        evaluations = [ran if each.candidate == candidate else each for each in evaluations]
        if measured.survived and allowed is not None and measured.cap_bytes is None:
            told.append(
                f"{candidate.short} ran without the hard limit: under it the runtime itself failed, "
                f"which took more than usual; what the allocator gave out, "
                f"{format_bytes(measured.peak_memory_bytes)}, is within it"
            )
        [ran] = judged([ran], budget)
        told += [
            f"{candidate.short} would have been chosen, but {violation.reason}"
            for violation in ran.violations
            if violation.hard and violation.limit != "step_time"
        ]
        verdict = solve(evaluations, budget, data)
    progress("verify", 1.0, "")
    evaluations = judged(evaluations, budget)
    told += _too_slow(evaluations)
    story.warnings[:0] = told  # nothing weighs more than what speaks against the choice
    return chosen, evaluations, verdict


def _too_slow(evaluations: Sequence[Evaluation]) -> list[str]:
    """Which would have been chosen before, but for their seconds, in one line."""
    slow = [
        e
        for e in evaluations
        if e.forecast is None and any(v.limit == "step_time" and v.hard for v in e.violations)
    ]
    if not slow:
        return []
    quickest = min(slow, key=lambda e: e.update_seconds or 0.0)
    reason = next(v.reason for v in quickest.violations if v.limit == "step_time")
    many = f"{len(slow)} candidates were run and are too slow, the quickest of them " if len(slow) > 1 else ""
    return [f"{many}{quickest.candidate.short}: {reason}"]


def _not_run(candidate: Candidate, error: BaseException) -> str:
    """Why the choice was not run before it was recommended, for the user."""
    if isinstance(error, KeyboardInterrupt):
        reason = "interrupted"
    elif isinstance(error, AdvisorError):
        reason = str(error)
    else:
        reason = f"{type(error).__name__}: {first_line(error)}"
    return (
        f"{candidate.short} was not run in a child process before it was recommended ({reason}): "
        "its memory is the simulated one alone"
    )


def _summary(story: Story, evaluations: list[Evaluation], request: Request) -> Recommendation:
    module, census = story.loaded.module, story.census
    parameter_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    by_type = story.base_forward_flops
    layer_types = {
        kind: LayerTypeSummary(
            count=len(census.of_type(kind)),
            parameters=sum(layer.parameters for layer in census.of_type(kind)),
            forward_flops=by_type.get(kind, 0),
        )
        for kind in LAYER_TYPES
        if census.of_type(kind) or by_type.get(kind)
    }
    return Recommendation(
        model=ModelSummary(
            source=story.loaded.source,
            name=story.loaded.name,
            parameters=census.parameters,
            parameter_bytes=parameter_bytes,
            layer_types=layer_types,
            forward_flops=sum(by_type.values()),
            fvcore_forward_flops=fvcore_forward_flops(module, census.input_size),
            classes=census.classes,
            arch=request.arch,
            fingerprint=story.base_fingerprint if story.loaded.has_trained_weights else "",
        ),
        budget=Budget(),
        batch_size=request.batch_size,
        input_size=census.input_size,
        evaluations=tuple(evaluations),
        not_applicable=story.not_applicable,
        assumed=story.assumed,
        methods={
            name: MethodCard(method.summary, method.formula, method.source)
            for name in dict.fromkeys(evaluation.candidate.method for evaluation in evaluations)
            for method in [get_method(name)]
        },
        provenance={
            "command": request.command,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seed": request.seed,
            "augment": request.augment,
            "device": accelerator_for(request.device).described,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
            f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}",
            "versions": versions(),
        },
    )
