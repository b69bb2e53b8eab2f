"""The whole story on one page: load, census, candidates, cost, race, solve, verify."""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Unpack

import torch
from torch import nn

from advisor.costs import Simulator, WaitingChild, fvcore_forward_flops, return_freed_memory
from advisor.device.profile import DeviceProfile, read_profile, target_of
from advisor.device.runtime import HereRuntime
from advisor.errors import AdvisorError, InputError
from advisor.methods import get_method
from advisor.probes import class_of_recall
from advisor.records import (
    LAYER_TYPES,
    Budget,
    DataSummary,
    Evaluation,
    LayerTypeSummary,
    MethodCard,
    ModelSummary,
    Recommendation,
    Runtime,
    Target,
)
from advisor.solver import answer, pareto_front, relaxations
from advisor.store import Store
from advisor.story.asked import Asked, asked
from advisor.story.pricing import cost_all, simulator_for
from advisor.story.probing import probe_all
from advisor.story.situation import Progress, Request, Story, prepare, versions
from advisor.story.verification import verify
from advisor.system.machine import is_ample
from advisor.training.accelerator import accelerator_for
from advisor.units import format_bytes

_log = logging.getLogger(__name__)


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
        min_accuracy: the least, in that metric, such as 0.8 or `80%`.
        min_retained: the least accuracy on the old data, likewise.
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
            evaluations, data_summary = probe_all(
                story, story.task, evaluations, budget, request, progress, store
            )
        with suppress(AdvisorError):  # it was not asked for
            runtime = runtime or _runtime(lean, device, target, budget, story, request)
        story.warnings += [store.trouble] if store.trouble else []
    _part_done()
    chosen, evaluations, verdict = verify(
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


def _first_said(data: DataSummary | None) -> str:
    """What comes before any fine-tuning, where the images, or how they are read, are wrong."""
    wrong = data.error if data else None
    return f"First of all: {wrong.text}. If that is as it should be: " if wrong else ""


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
