"""Recommendations as the engine hands them over, made by hand: one for each kind of outcome."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advisor.records import (
    Accuracy,
    Budget,
    Candidate,
    Cost,
    DataSummary,
    Estimate,
    Evaluation,
    Flops,
    LayerTypeCost,
    LayerTypeSummary,
    Levers,
    Measurement,
    Memory,
    ModelSummary,
    Recommendation,
    Relaxation,
    Runtime,
    Violation,
)

# Share of the convolution and linear FLOPs, and of the activations, by layer type.
SHARES = {
    "standard": 0.07,
    "pointwise": 0.62,
    "depthwise": 0.21,
    "linear": 0.02,
    "norm": 0.06,
    "other": 0.02,
}


def split(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Whole parts that add up to the total."""
    parts = {kind: int(total * share) for kind, share in shares.items()}
    parts["other"] += total - sum(parts.values())
    return parts


def cost(
    trained: int,
    *,
    forward: int,
    input_gradient: int = 0,
    weight_gradient: int = 0,
    activations: int = 0,
    temporaries: int = 0,
    weights: int = 9_000_000,
    shares: dict[str, float] = SHARES,
    **more: object,
) -> Cost:
    """A cost whose parts add up, as the engine's do."""
    flops = {
        "forward": split(forward, shares),
        "input_gradient": split(input_gradient, shares),
        "weight_gradient": split(weight_gradient, shares),
        "optimizer": split(14 * trained, shares),
    }
    held = split(activations + temporaries, shares)
    trained_of = split(trained, shares)
    by_layer_type = {
        kind: LayerTypeCost(
            trained_of[kind],
            Flops(**{phase: parts[kind] for phase, parts in flops.items()}),
            held[kind],
        )
        for kind in shares
    }
    memory = Memory(
        weights=weights,
        buffers=140_000,
        gradients=4 * trained,
        optimizer_state=8 * trained,
        activations=activations,
        temporaries=temporaries,
        batch=4_816_960,
    )
    return Cost(
        trainable_parameters=trained,
        delta_bytes=4 * trained + 136_000,
        flops=sum((item.flops for item in by_layer_type.values()), Flops()),
        memory=memory,
        by_layer_type=by_layer_type,
        fidelity="simulated",
        **more,  # type: ignore[arg-type]
    )


def candidate(method: str, optimizer: str = "adam", **setting: float | str | bool) -> Candidate:
    return Candidate.of(method, setting, Levers(optimizer))  # type: ignore[arg-type]


def accuracy(mean: float, half: float = 0.02, **more: object) -> Accuracy:
    low, high = max(mean - half, 0.0), min(mean + half, 1.0)
    return Accuracy(mean, low, high, 2000, learning_rate=0.01, updates=64, **more)  # type: ignore[arg-type]


def run(peak: int, *, cap: int | None = 700_000_000, survived: bool = True, failure: str = "") -> Measurement:
    return Measurement(
        peak_memory_bytes=peak,
        peak_resident_bytes=peak + 302_000_000,
        runtime_bytes=296_000_000,
        update_seconds=0.412,
        updates=5,
        cap_bytes=cap,
        survived=survived,
        failure=failure,
    )


def over_ram(peak: int, allowed: int) -> Violation:
    over = f"{(peak - allowed) / 1e6:.0f} MB over the {allowed / 1e6:.0f} MB allowed"
    return Violation("ram", peak, allowed, f"peak memory {peak / 1e6:.0f} MB, {over}")


GIGA = 10**9
COSTS = {
    candidate("full"): cost(
        2_236_682,
        forward=4_930 * GIGA // 1000,
        input_gradient=4_700 * GIGA // 1000,
        weight_gradient=4_890 * GIGA // 1000,
        activations=604_000_000,
        temporaries=19_000_000,
    ),
    candidate("head"): cost(
        12_810,
        forward=4_930 * GIGA // 1000,
        weight_gradient=210_000,
        activations=7_100_000,
        temporaries=69_000_000,
    ),
    candidate("norm"): cost(
        46_922,
        forward=4_930 * GIGA // 1000,
        input_gradient=4_690 * GIGA // 1000,
        weight_gradient=235 * GIGA // 1000,
        activations=604_000_000,
        temporaries=19_000_000,
    ),
    candidate("bias"): cost(
        29_866,
        forward=4_930 * GIGA // 1000,
        input_gradient=4_690 * GIGA // 1000,
        weight_gradient=210 * GIGA // 1000,
        activations=604_000_000,
        temporaries=19_000_000,
    ),
    candidate("recalibrate"): cost(0, forward=4_920 * GIGA // 1000, temporaries=77_000_000),
    candidate("lora", rank=4): cost(
        160_132,
        forward=5_430 * GIGA // 1000,
        input_gradient=5_310 * GIGA // 1000,
        weight_gradient=820 * GIGA // 1000,
        activations=611_000_000,
        temporaries=21_000_000,
        notes=("features.1.conv.1: rank 4 capped at 3", "features.0.0: rank 4 capped at 2"),
    ),
    candidate("lora", rank=8): cost(
        243_904,
        forward=5_920 * GIGA // 1000,
        input_gradient=5_770 * GIGA // 1000,
        weight_gradient=1_290 * GIGA // 1000,
        activations=618_000_000,
        temporaries=21_000_000,
        notes=(
            "features.1.conv.1: rank 8 capped at 3",
            "features.0.0: rank 8 capped at 2",
            "features.2.conv.0.0: rank 8 capped at 7",
        ),
    ),
    candidate("dora", rank=4): cost(
        177_188,
        forward=4_960 * GIGA // 1000,
        input_gradient=4_880 * GIGA // 1000,
        weight_gradient=4_620 * GIGA // 1000,
        activations=619_000_000,
        temporaries=22_000_000,
        uncounted_operators=("_foreach_lerp_",),
    ),
    candidate("galore", rank=8): cost(
        2_236_682,
        forward=4_930 * GIGA // 1000,
        input_gradient=4_700 * GIGA // 1000,
        weight_gradient=4_890 * GIGA // 1000,
        activations=604_000_000,
        temporaries=19_000_000,
    ),
    candidate("adapter", kind="parallel"): cost(
        1_124_000,
        forward=5_010 * GIGA // 1000,
        input_gradient=4_930 * GIGA // 1000,
        weight_gradient=105 * GIGA // 1000,
        activations=605_000_000,
        temporaries=21_000_000,
        inference_flops_ratio=1.016,
    ),
}
ACCURACIES = {
    "full": accuracy(0.694),
    "head": accuracy(0.599),
    "norm": accuracy(0.713),
    "bias": accuracy(0.702),
    "recalibrate": replace(accuracy(0.550), learning_rate=None, updates=0),
    "lora-rank=4": accuracy(0.678),
    "lora-rank=8": accuracy(0.671, finalist=False),
    "dora-rank=4": accuracy(0.684),
    "galore-rank=8": accuracy(0.651, finalist=False),
    "adapter-kind=parallel": accuracy(0.664),
}
MODEL = ModelSummary(
    source="torchvision:mobilenet_v2",
    name="mobilenet_v2",
    parameters=2_236_682,
    parameter_bytes=8_946_728,
    layer_types={
        "standard": LayerTypeSummary(1, 864, 21_676_032),
        "pointwise": LayerTypeSummary(34, 2_124_736, 536_453_120),
        "depthwise": LayerTypeSummary(17, 64_224, 41_370_112),
        "linear": LayerTypeSummary(1, 12_810, 25_610),
        "norm": LayerTypeSummary(52, 34_048, 13_440_000),
        "other": LayerTypeSummary(36, 0, 6_200_000),
    },
    forward_flops=619_164_874,
    fvcore_forward_flops=628_500_000,
    classes=10,
)
DATA = DataSummary(
    source="photos/workshop-line-3",
    scenario="shift",
    classes=10,
    new_classes=0,
    train_samples=1024,
    validation_samples=2000,
    base_accuracy=accuracy(0.235),
    probe_seconds=183.4,
)
PROVENANCE = {
    "command": "peft-advisor recommend torchvision:mobilenet_v2 --data photos/workshop-line-3 "
    "--ram 640MB --flops-budget --report report.html",
    "versions": {
        "peft-advisor": "0.1.0",
        "torch": "2.15.0",
        "torchvision": "0.29.0",
        "python": "3.12.4",
    },
    "seed": 0,
    "machine": "2 CPU cores, 8.0 GB",
    "created": "2026-11-23T04:00:00+00:00",
}


def with_data() -> Recommendation:
    """A bare --flops-budget, 640 MB: norm is chosen, four methods are too large."""
    evaluations = []
    for item, price in COSTS.items():
        peak = price.peak_memory_bytes
        rejected = peak > 640_000_000
        evaluations.append(
            Evaluation(
                item,
                price,
                measured=run(634_400_000, cap=950_000_000) if item.id == "norm" else None,
                accuracy=None if rejected else ACCURACIES[item.id],
                violations=(over_ram(peak, 640_000_000),) if rejected else (),
            )
        )
    return Recommendation(
        model=MODEL,
        runtime=Runtime(190_000_000, "here"),
        budget=Budget(ram_bytes=640_000_000, prefer="flops", storage_bytes=2_000_000, min_accuracy=0.5),
        batch_size=8,
        input_size=(3, 224, 224),
        evaluations=tuple(evaluations),
        data=DATA,
        recommended="norm",
        answer="Train norm: 71.3 % accuracy (69.3-73.3) for 629 MB and 9.86 GFLOP per update, "
        "run under 640 MB.",
        front=("norm", "head", "recalibrate"),
        relaxations=(
            Relaxation(
                "ram",
                17_000_000,
                "full",
                None,
                "With 17 MB more memory, full fits (not tried).",
            ),
            Relaxation("ram", 3_600_000, "lora-rank=4", None, "With 4 MB more, lora fits."),
        ),
        not_applicable={"transposed-only": "the model has no transposed convolution"},
        warnings=("The held-out split has 2,000 samples: differences under 2 points are noise.",),
        provenance=PROVENANCE,
    )


def without_data() -> Recommendation:
    """No data: ranked on cost alone; accuracy is unknown."""
    peak = 640_000_000
    evaluations = tuple(
        Evaluation(
            item,
            price,
            measured=run(91_000_000) if item.id == "head" else None,
            violations=(over_ram(price.peak_memory_bytes, peak),) if price.peak_memory_bytes > peak else (),
        )
        for item, price in COSTS.items()
    )
    return Recommendation(
        model=MODEL,
        runtime=Runtime(190_000_000, "here"),
        budget=Budget(ram_bytes=peak, prefer="flops"),
        batch_size=8,
        input_size=(3, 224, 224),
        evaluations=evaluations,
        recommended="head",
        answer="Without data the cheapest that trains is head: 90.5 MB and 4.93 GFLOP per update; "
        "its accuracy is unknown.",
        front=("head", "recalibrate"),
        provenance=PROVENANCE | {"command": "peft-advisor recommend torchvision:mobilenet_v2 --no-probe"},
    )


def profile() -> Recommendation:
    """What `profile` shows: costs only, nothing asked and nothing chosen."""
    return replace(
        without_data(),
        budget=Budget(),
        recommended=None,
        front=(),
        answer="",
        evaluations=tuple(Evaluation(item, price) for item, price in COSTS.items()),
    )


def nothing_fits() -> Recommendation:
    """A budget below every candidate."""
    evaluations = tuple(
        Evaluation(item, price, violations=(over_ram(price.peak_memory_bytes, 64_000_000),))
        for item, price in COSTS.items()
    )
    return replace(
        with_data(),
        budget=Budget(ram_bytes=164_000_000, runtime_overhead_bytes=100_000_000, flops=3 * GIGA),
        evaluations=evaluations,
        recommended=None,
        front=(),
        answer="Nothing fits 64.0 MB: the smallest, recalibrate, needs 91.0 MB.",
        relaxations=(
            Relaxation(
                "ram",
                27e6,
                "recalibrate",
                None,
                "With --ram 191MB (27.0 MB more) the answer is recalibrate",
                "answer",
                {"ram": 91e6},
            ),
        ),
    )


def next_chosen() -> Recommendation:
    """The best candidate died under the cap; the next one was run and chosen."""
    base = with_data()
    failure = "killed at 950 MB: the allocator asked for 12 MB more"
    evaluations = []
    for item in base.evaluations:
        if item.candidate.id == "norm":
            died = run(634_000_000, cap=950_000_000, survived=False, failure=failure)
            broken = Violation("execution", 634e6, 640e6, f"did not survive its run: {failure}")
            evaluations.append(replace(item, measured=died, violations=(broken,)))
        elif item.candidate.id == "bias":
            evaluations.append(replace(item, measured=run(630_000_000, cap=950_000_000)))
        else:
            evaluations.append(item)
    return replace(
        base,
        evaluations=tuple(evaluations),
        recommended="bias",
        answer="Train bias: 70.2 % accuracy; norm, first choice, did not survive its run.",
        front=("bias", "head", "recalibrate"),
        warnings=("norm was first choice and did not survive its run under 640 MB.",),
    )


def hostile() -> Recommendation:
    """Every text that comes from outside tries something."""
    script = "<script>alert('x')</script>"
    escape = "\x1b[31mred\x1b[0m [bold]markup[/nosuch]"
    item = candidate("lora", depthwise="<b>&amp;\"'", rank=4)
    price = replace(
        COSTS[candidate("head")],
        notes=(f"{script}.conv: rank 4 capped at 2",),
        uncounted_operators=("<img src=x onerror=alert(1)>",),
    )
    base = with_data()
    return replace(
        base,
        model=replace(MODEL, source=f"/tmp/{script}\udcff.pt", name=f"Net{script}{escape}"),
        data=replace(DATA, source="\"><img src='http://example.invalid/x.png'>\u202etxt.exe"),
        evaluations=(
            Evaluation(item, price, accuracy=accuracy(0.9), probe_failure=escape),
            Evaluation(
                candidate("full"),
                COSTS[candidate("full")],
                violations=(Violation("ram", 6e8, 1e8, f"{script} & {escape}"),),
            ),
        ),
        recommended=item.id,
        answer=f"Train {script}\nnow {escape}",
        front=(item.id,),
        relaxations=(Relaxation("ram", 1.0, "full", 0.01, f"{script} {escape}"),),
        not_applicable={script: script},
        warnings=(f"{script} {escape}",),
        provenance={"command": f"peft-advisor recommend '{script}'", "versions": {script: script}},
    )


def many() -> Recommendation:
    """Forty candidates with data."""
    evaluations = []
    for n in range(40):
        method = ("lora", "dora", "adapter", "galore", "norm")[n % 5]
        item = candidate(method, rank=2 + n // 5, depthwise="skip" if n % 2 else "kernel")
        price = cost(
            20_000 * (n + 1),
            forward=(3_000 + 40 * (n * 7 % 40)) * GIGA // 1000,
            input_gradient=(200 * (n * 11 % 23)) * GIGA // 1000,
            weight_gradient=(120 * (n * 5 % 31)) * GIGA // 1000,
            activations=(40 + 15 * (n * 13 % 37)) * 1_000_000,
            temporaries=19_000_000,
        )
        peak = price.peak_memory_bytes
        rejected = peak > 512_000_000
        mean = 0.5 + 0.006 * (n * 17 % 40)
        evaluations.append(
            Evaluation(
                item,
                price,
                accuracy=None if rejected else accuracy(mean, 0.015 + 0.001 * (n % 7)),
                violations=(over_ram(peak, 512_000_000),) if rejected else (),
            )
        )
    best = max((item for item in evaluations if item.accuracy), key=lambda item: item.accuracy.mean)  # type: ignore[union-attr]
    front = tuple(
        item.candidate.id
        for item in evaluations
        if item.accuracy and not any(_beats(other, item) for other in evaluations)
    )
    return replace(
        with_data(),
        budget=Budget(ram_bytes=512_000_000, flops=20 * GIGA),
        evaluations=tuple(evaluations),
        recommended=best.candidate.id,
        answer=f"Train {best.candidate.id}: the best of forty.",
        front=front,
        relaxations=(),
    )


def _beats(a: Evaluation, b: Evaluation) -> bool:
    if a.accuracy is None or b.accuracy is None or a is b:
        return False
    return (
        a.accuracy.mean >= b.accuracy.mean
        and a.cost.peak_memory_bytes <= b.cost.peak_memory_bytes
        and a.cost.flops.total <= b.cost.flops.total
    )


def empty() -> Recommendation:
    """Nothing of anything: zero sizes everywhere, and no candidate."""
    return Recommendation(
        model=ModelSummary("empty.pt", "Empty", 0, 0, {}, 0, None, None),
        budget=Budget(),
        batch_size=1,
        input_size=(),
        evaluations=(),
        answer="Nothing to train.",
    )


def zeros() -> Recommendation:
    """One candidate that costs nothing and knows nothing."""
    free = Cost(0, 0, Flops(), Memory(), {}, "simulated")
    return replace(
        empty(),
        batch_size=0,
        budget=Budget(ram_bytes=1, flops=1, storage_bytes=1, min_accuracy=0.0),
        evaluations=(
            Evaluation(
                candidate("recalibrate"),
                free,
                accuracy=Accuracy(0.0, 0.0, 0.0, 1),
                measured=Measurement(0, 0, 0, 0.0, 1, None, True),
            ),
            Evaluation(candidate("full"), free, accuracy=Accuracy(1.0, 1.0, 1.0, 1)),
        ),
        recommended="recalibrate",
        front=("recalibrate",),
        data=DataSummary("none", "new-classes", 2, 1, 0, 0, None, 0.0),
    )


def remembered() -> Recommendation:
    """What each candidate forgets is known, and the choice forgets much; others were only predicted."""
    base = with_data()
    evaluations = []
    for item in base.evaluations:
        if item.candidate.id == "head":
            evaluations.append(replace(item, accuracy=None, predicted=Estimate(0.612, 0.5, 0.7)))
        elif item.accuracy:
            judged = replace(item.accuracy, retained=accuracy(0.791))
            evaluations.append(replace(item, accuracy=judged))
        else:
            evaluations.append(item)
    before = replace(accuracy(0.235), retained=accuracy(0.956))
    return replace(
        base,
        outcome="use",
        evaluations=tuple(evaluations),
        data=replace(DATA, retain="photos/old", base_accuracy=before),
        budget=Budget(ram_bytes=640_000_000, min_retained=0.7),
        assumed=("images are normalised with ImageNet's mean and std: give --mean and --std",),
    )


def left_alone() -> Recommendation:
    """The model as it is does as well as anything."""
    return replace(
        with_data(),
        outcome="leave",
        recommended=None,
        relaxations=(),
        answer="Leave the model as it is: 71.0 % of 2,000 held-out images right (69.0 to 73.0 %), and the "
        "best that was tried, norm, is within 1.0 %: 71.3 %, +0.3 points.",
    )


def long_names() -> Recommendation:
    """Every text as long as users' texts get, and more warnings than there is room for."""
    base, folder = remembered(), "/home/somebody/with a long name/projects/" + "deep-folder/" * 9
    long = candidate("adapter", kind="parallel")
    levers = Levers(micro_batch=2, checkpoint=True, update="per-parameter")
    evaluations = [
        replace(item, candidate=replace(long, levers=levers)) if item.candidate.id == "bias" else item
        for item in base.evaluations
    ]
    source = f"{folder}model.pt"
    command = f"peft-advisor recommend '{source}' --data '{folder}' --ram 640MB --probe-time 20m"
    return replace(
        base,
        model=replace(MODEL, source=source),
        evaluations=tuple(evaluations),
        warnings=tuple(f"warning {n} of a kind that {'goes on and on and ' * 9}ends" for n in range(9)),
        provenance=base.provenance | {"command": command},
    )


SAMPLES = {
    function.__name__: function
    for function in (
        with_data,
        without_data,
        profile,
        nothing_fits,
        next_chosen,
        hostile,
        remembered,
        left_alone,
        long_names,
        many,
        empty,
        zeros,
    )
}


@pytest.fixture(params=SAMPLES)
def sample(request: pytest.FixtureRequest) -> Recommendation:
    """Each of the recommendations in turn."""
    return SAMPLES[request.param]()


@pytest.fixture
def samples() -> dict[str, Recommendation]:
    """All of them, by name."""
    return {name: make() for name, make in SAMPLES.items()}
