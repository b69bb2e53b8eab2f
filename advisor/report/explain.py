"""What was asked, how each figure was obtained, and what the words mean: text for the report."""

from __future__ import annotations

from advisor.records import Recommendation
from advisor.report import view
from advisor.solver import LEAST, LIMIT, limits_of
from advisor.units import format_bytes, format_count, format_flops, format_seconds

DEFINITIONS = (
    (
        "update",
        "One optimizer step over the whole batch. FLOPs and memory are those of one update.",
    ),
    (
        "FLOPs",
        "1 multiply-add = 2 FLOPs. A count, not a rate. Forward, both gradients and the optimizer.",
    ),
    (
        "peak memory",
        (
            "The most that the training step holds at once: weights, buffers, gradients, optimizer "
            "state, saved activations, temporaries, the batch, what kernels hold inside one operator "
            "(workspace), and cached outputs of the front. The runtime is not in it."
        ),
    ),
    ("activations", "What the forward pass makes and keeps for the backward pass."),
    ("temporaries", "Whatever else an update makes on its way, and lets go of soon."),
    ("scope", "How many of the last blocks are trained; what is before them stays frozen."),
    ("MB", "10^6 bytes; MiB would be 2^20."),
    (
        "to ship",
        "The trained weights and the statistics that changed: what a device needs to follow.",
    ),
    (
        "input gradient",
        "The pass back through a layer to its input; it costs what the forward pass does.",
    ),
    (
        "weight gradient",
        "The gradient of a layer's own weights; it costs what the forward pass does.",
    ),
    ("standard", "A convolution larger than 1x1 in which every output sees every input channel."),
    ("pointwise", "A 1x1 convolution."),
    ("depthwise", "A convolution in which each channel has its own kernel."),
    ("grouped", "Any other convolution whose channels are split into groups."),
    ("Pareto front", "Candidates that no other surely beats in accuracy and every cost at once."),
    (
        "interval",
        "95 %: of a hundred intervals made this way, about 95 hold the true accuracy.",
    ),
)


def asked(recommendation: Recommendation) -> list[tuple[str, str]]:
    """The question, as (what, value) pairs."""
    model, data, budget = recommendation.model, recommendation.data, recommendation.budget
    size = " x ".join(map(str, recommendation.input_size)) or "unknown"
    lines = [
        ("Model", f"{model.name} \u2013 {model.source}"),
        ("Parameters", f"{format_count(model.parameters)}, {format_bytes(model.parameter_bytes)}"),
        ("Batch and input", f"{recommendation.batch_size} of {size}"),
    ]
    if model.classes is not None:
        lines.append(("Classes", f"{model.classes:,}"))
    if data is None:
        lines.append(("Data", "none given"))
    else:
        new = f", {data.new_classes} of them new" if data.new_classes else ""
        lines += [
            ("Data", data.source),
            ("Scenario", f"{data.scenario}: {data.classes} classes{new}"),
            ("Samples", view.split_text(recommendation, data)),
            ("Accuracy as it is", _base(recommendation)),
        ]
        if data.unlabelled is not None:
            text = f"{data.unlabelled_samples:,} of {data.unlabelled}, for methods that look at no labels"
            lines.append(("Unlabelled images", text))
        if data.retain is not None:
            old = data.base_accuracy.retained if data.base_accuracy else None
            lines.append(("Old data", f"{data.retain}; as it is: {view.accuracy_text(old)}"))
    lines += [("Assumed", assumption) for assumption in recommendation.assumed]
    limits = []
    for name, allowed in limits_of(budget).items():
        limit = LIMIT[name]
        what = budget.measure if name == "min_accuracy" else limit.what
        least = f"at least {view.percent(allowed)}" if limit.at_least else f"at most {limit.show(allowed)}"
        less = f", {format_bytes(budget.runtime_overhead_bytes)} less for the runtime"
        taken = less if name == "ram" and budget.runtime_overhead_bytes else ""
        limits.append(f"{what} {least}{taken}{' (told, not held to)' * (name in budget.warn)}")
    lines.append(("Limits", "; ".join(limits) or "none"))
    cheapest = f"the {LEAST[budget.prefer]}"
    within = f"within {view.points_text(budget.tolerance)} of it"
    within += ", of what doesn't surely forget more than others" if data and data.retain else ""
    goal = f"the highest {budget.measure}; {within}, {cheapest}"
    lines.append(("Wanted", goal if data else cheapest))
    return lines


def sources(recommendation: Recommendation) -> list[tuple[str, str, str]]:
    """(figure, how sure, how it was obtained), the unknown ones included."""
    return [
        *_costs(recommendation),
        _check(recommendation),
        _accuracy(recommendation),
        *_runs(recommendation),
        _forecasts(recommendation),
    ]


def _forecasts(recommendation: Recommendation) -> tuple[str, str, str]:
    target = recommendation.target
    if target is None:
        return ("energy per update", "unknown", "Not measured.")
    return (
        "time and energy on the target",
        "predicted",
        (
            f"Each operator of an update was counted, and costs what operators of its kind were measured to "
            f"take a call, a FLOP and a byte {view.on_target(target)} ({target.machine}, {target.threads} "
            f"thread{'s' * (target.threads > 1)}, PyTorch {target.torch}); joules are those seconds at the "
            "power that the processor took meanwhile, where the device tells."
        ),
    )


def _base(recommendation: Recommendation) -> str:
    base = recommendation.data.base_accuracy if recommendation.data else None
    if base is None:
        return "unknown: its head was replaced"
    by_class = view.by_class_text(base, recommendation)
    return view.accuracy_text(base) + (f": {by_class}" if by_class else "")


def _costs(recommendation: Recommendation) -> list[tuple[str, str, str]]:
    found: set[str] = {item.cost.fidelity for item in recommendation.evaluations}
    fidelities = sorted(found or {"unknown"})
    sure = ", ".join(fidelities)
    how = {
        "simulated": "One real update, optimizer included, ran on tensors without storage",
        "measured": "One update ran on real tensors",
        "estimated": "A cost table gives each layer's share of one update",
        "unknown": "There is no candidate",
    }
    ran = "; ".join(how[name] for name in fidelities)
    return [
        (
            "FLOPs",
            sure,
            (
                f"{ran}. Every operator was counted from its shapes: convolutions and matrix "
                "products exactly, groups included; elementwise ones at 1 FLOP for each element."
            ),
        ),
        (
            "peak memory",
            sure,
            (
                f"{ran}. Every tensor's bytes were added when it came and taken off when it went. "
                "Workspace that a kernel takes inside one operator was measured on this machine where "
                "it may decide the peak; on another processor it may differ."
            ),
        ),
        (
            "to ship, trained parameters",
            "counted",
            "From the tensors that the method trains or changes.",
        ),
    ]


def _check(recommendation: Recommendation) -> tuple[str, str, str]:
    model = recommendation.model
    name = "forward FLOPs, checked"
    if model.fvcore_forward_flops is None:
        return (name, "unknown", "fvcore could not count this model.")
    ratio = view.share_of(model.forward_flops, model.fvcore_forward_flops)
    compared = f" Ours is {ratio:.3f} of it." if ratio is not None else ""
    return (
        name,
        "independent check",
        (
            f"One sample through the base model: {format_flops(model.forward_flops)}; fvcore's "
            f"multiply-adds, doubled: {format_flops(model.fvcore_forward_flops)}.{compared} "
            "The two count normalisation and elementwise operators differently."
        ),
    )


def _accuracy(recommendation: Recommendation) -> tuple[str, str, str]:
    probed = [item.accuracy for item in recommendation.evaluations if item.accuracy]
    data = recommendation.data
    if not probed:
        why = "No data was given." if data is None else "No candidate was probed."
        return ("accuracy", "unknown", f"{why} Candidates are ranked on cost alone.")
    seconds = ""
    if data:
        seconds = f" All probes took {format_seconds(data.probe_seconds)}{view.how_probed_text(data)}."
    if data and data.probes_recalled:
        seconds += f" {data.probes_recalled} of them come from earlier runs."
    samples = sorted({item.samples for item in probed})
    held_out = f"{samples[0]:,}" if len(samples) == 1 else f"{samples[0]:,} to {samples[-1]:,}"
    return (
        "accuracy",
        "probe",
        (
            f"A short fine-tune of each candidate at its best learning rate, judged on {held_out} "
            f"held-out samples, the same for all; the interval is of 95 %.{seconds} "
            "Longer training may change the figures."
        ),
    )


def _runs(recommendation: Recommendation) -> list[tuple[str, str, str]]:
    runs = [item.measured for item in recommendation.evaluations if item.measured]
    if not runs:
        return [
            (
                "time per update, process memory",
                "unknown",
                "No candidate was run in a child process.",
            )
        ]
    many = f"{len(runs)} candidate{'s' * (len(runs) != 1)}"
    return [
        (
            "time per update, process memory",
            "measured",
            (
                f"{many} ran in a child process, held to the limit on peak memory, where there is one. "
                "The allocator's peak is tensors and workspace; the process's peak holds "
                "interpreter and libraries as well."
            ),
        )
    ]
