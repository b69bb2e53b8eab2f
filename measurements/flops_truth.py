"""Study: what a training step really multiplies and adds, which reductions are real, and by what.

    python -m measurements.flops_truth            # 24 of torchvision's classifiers, about 7 minutes
    python -m measurements.flops_truth --quick    # three of them, under 2 minutes

Three questions for each model: by how much torch's counter is off; what each method saves of a full
update; and how much of the network can still be trained where 50, 75 or 95 % are to be saved.
Writes results/flops_truth.json and the tables in the READMEs. FLOPs follow from shapes: no weights are
downloaded, nothing is timed.
"""

from __future__ import annotations

import argparse
import io
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from advisor.costs import Simulator
from advisor.costs.flops import operator_flops
from advisor.costs.simulate import shape_copy
from advisor.methods import methods
from advisor.models.blocks import has_replaceable_front
from advisor.models.layers import take_census
from advisor.records import Candidate, Census, Cost, Levers
from advisor.training.update import begin, update
from measurements.tables import README, table, write_tables

QUICK = ("resnet18", "mobilenet_v2", "shufflenet_v2_x1_0")
IN_README = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0")
MODELS = (
    *("alexnet", "vgg11_bn", "squeezenet1_1", "resnet18", "resnet50", "wide_resnet50_2"),
    *("resnext50_32x4d", "regnet_x_400mf", "regnet_y_400mf", "densenet121", "googlenet", "inception_v3"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5", "mnasnet1_0"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s"),
    *("convnext_tiny", "swin_t", "vit_b_16"),
)
COUNTED_BATCH = 2  # of what the counters see; BatchNorm in train mode wants more than one sample
BATCH = 32  # of the updates that methods are compared in: the optimizer's step is shared by so many
RANK = 4
EPOCHS = 10  # over which a cached prefix's one pass is spread
THRESHOLDS = (0.50, 0.75, 0.95)
# At any scope galore costs more than full and trains what full trains; dora, loha and lokr more than
# lora on the same layers; lite-residual's branches train less than lora. None could be the widest.
SEARCHED = ("full", "head", "norm", "bias", "lora", "ia3", "ssf", "sparse")
RESULTS = Path(__file__).parent / "results" / "flops_truth.json"
PROJECT_README = Path(__file__).parent.parent / "README.md"
Row = dict[str, Any]


class TrueProducts(TorchDispatchMode):
    """Sums `operator_flops` by operator: of all of them, and of those that torch's counter counts too."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: Counter[str] = Counter()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        flops = operator_flops(func, args, kwargs or {}, result)
        if flops is not None:
            total = flops.result + flops.input_gradient + flops.weight_gradient
            self.by_operator[func.overloadpacket.__name__] += total
            self.products += total * (func.overloadpacket in flop_registry)
        return result


def study(name: str) -> Row:
    """Everything about one model; FLOPs are per sample."""
    size = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(name, weights=None)
    census = take_census(model, size)
    # One image: a cached prefix's FLOPs are then those of one image.
    simulator = Simulator(model, census, images=1, workspace=False)
    full = simulator.cost(Candidate("full"), BATCH)
    failures: dict[str, str] = {}
    return {
        "model": name,
        "blocks": len(census.blocks),
        **_counters(model, census),
        "full_all_flops": full.flops.total / BATCH,  # elementwise work, norms and the optimizer, too
        "methods": _methods(simulator, census, full),
        "reachable": _reachable(simulator, census, full, failures),
        "failures": failures,
        "fvcore": _fvcore(model, size),
    }


def _counters(model: nn.Module, census: Census) -> Row:
    """Convolutions and matrix products of an update, as torch counts them and as they are."""
    # LoRA on every ungrouped layer, and the head: what peers can do on depthwise networks.
    setting = {"rank": RANK} | ({"depthwise": "skip"} if census.of_type("depthwise") else {})
    lora = Candidate.of("lora", setting, Levers())
    _, forward = _count(model, census, None)
    full_counted, full = _count(model, census, Candidate("full"))
    lora_counted, lora_true = _count(model, census, lora)
    return {
        "forward_flops": forward,
        "full_counted_by_torch_flops": full_counted,
        "full_true_flops": full,
        "overcount": full_counted / full,
        "lora_counted_by_torch_flops": lora_counted,
        "lora_true_flops": lora_true,
        "reduction_as_counted": 1 - lora_counted / full_counted,
        "reduction_true": 1 - lora_true / full,
    }


def _count(model: nn.Module, census: Census, candidate: Candidate | None) -> tuple[float, float]:
    """(torch's count, true count) per sample; of a forward pass where there is no candidate."""
    mode = FakeTensorMode()
    copied = shape_copy(model, mode)
    with mode:
        images = torch.zeros(COUNTED_BATCH, *census.input_size)
        labels = torch.zeros(COUNTED_BATCH, dtype=torch.int64)
        theirs, ours = FlopCounterMode(display=False), TrueProducts()
        if candidate is None:
            # Train mode, as in the update: eval would fuse attention into one uncounted operator.
            with theirs, ours, torch.no_grad():
                copied.train()(images)
        else:
            trainable, optimizer = begin(copied, census, candidate, 1e-3)
            with theirs, ours:
                update(trainable, optimizer, images, labels)
    return theirs.get_total_flops() / COUNTED_BATCH, ours.products / COUNTED_BATCH


def _methods(simulator: Simulator, census: Census, full: Cost) -> dict[str, Row | None]:
    """FLOPs per sample of every method's update, at its middle setting; None: it doesn't apply."""
    found: dict[str, Row | None] = {}
    for name in methods():
        candidate = _middle(name, census)
        found[name] = None
        if candidate is not None:
            try:
                cost = simulator.cost(candidate, BATCH)
            except Exception as error:  # noqa: BLE001 - one method's failure must not end the others'
                found[name] = {"candidate": candidate.id, "failure": repr(error)}
                continue
            found[name] = {
                "candidate": candidate.id,
                "flops": cost.flops.total / BATCH,
                "trainable_parameters": cost.trainable_parameters,
                "reduction": 1 - cost.flops.total / full.flops.total,
            }
    return found


def _middle(name: str, census: Census, levers: Levers | None = None) -> Candidate | None:
    """A method's middle setting; depthwise layers in the method's default form."""
    settings = [given for given in methods()[name].settings(census, (RANK,)) if "depthwise" not in given]
    return Candidate.of(name, settings[len(settings) // 2], levers or Levers()) if settings else None


def _reachable(simulator: Simulator, census: Census, full: Cost, failures: dict[str, str]) -> list[Row]:
    """For each threshold, without and with a cached prefix: what reaches it and trains the most.

    The most blocks (of those that train as many, the most parameters), and the most parameters. What
    can't be run is left in `failures`, and counts as not reaching anything at that scope.
    """
    priced: dict[Candidate, tuple[float, int]] = {}

    def reduction(name: str, scope: int, cached: bool) -> tuple[float, Candidate] | None:
        levers = Levers(
            scope=scope if scope < len(census.blocks) else None, cached_prefix="ram" if cached else "no"
        )
        candidate = _middle(name, census, levers)
        if candidate is None:
            return None
        if candidate not in priced:
            try:
                cost = simulator.cost(candidate, BATCH)
            except Exception as error:  # noqa: BLE001 - such as auxiliary heads that read a skipped front
                failures[candidate.id] = repr(error).splitlines()[0]
                return None
            each = cost.flops.total / BATCH + cost.setup_flops / EPOCHS
            priced[candidate] = 1 - each / (full.flops.total / BATCH), cost.trainable_parameters
        return priced[candidate][0], candidate

    rows: list[Row] = []
    for cached in (False, True):
        every = range(len(census.blocks) + 1)
        scopes = [scope for scope in every if not cached or has_replaceable_front(census, scope)]
        for threshold in THRESHOLDS:
            reached = [
                {
                    "candidate": found[1].id,
                    "method": found[1].method,
                    "blocks": found[0] if name != "head" else 0,
                    "trainable_parameters": priced[found[1]][1],
                    "reduction": priced[found[1]][0],
                }
                for name in SEARCHED
                # In any scope, head trains none of the blocks: the least is what costs least.
                for among in [scopes[:1] if name == "head" else scopes]
                if (found := _widest(name, among, threshold, cached, reduction)) is not None
            ]
            rows.append(
                {
                    "threshold": threshold,
                    "cached": cached,
                    "most_blocks": max(reached, key=_blocks_first, default=None),
                    "most_parameters": max(reached, key=_parameters_first, default=None),
                }
            )
    return rows


def _blocks_first(found: Row) -> tuple[int, int]:
    return found["blocks"], found["trainable_parameters"]


def _parameters_first(found: Row) -> tuple[int, int]:
    return found["trainable_parameters"], found["blocks"]


def _widest(
    name: str, scopes: Sequence[int], threshold: float, cached: bool, reduction: Any
) -> tuple[int, Candidate] | None:
    """The widest scope at which the method reaches the threshold: a wider one never costs less."""
    low, high, found = 0, len(scopes) - 1, None
    while low <= high:
        middle = (low + high) // 2
        reached = reduction(name, scopes[middle], cached)
        if reached is not None and reached[0] >= threshold:
            found, low = (scopes[middle], reached[1]), middle + 1
        else:
            high = middle - 1
    return found


# What both sides' operators belong to; all else is elementwise work.
_GROUPS = {
    "convolution": ("convolution", "conv"),
    "matrix product": (
        *("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "einsum", "_native_multi_head_attention"),
        *("_scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention"),
    ),
    "norm": (
        *("native_batch_norm", "_native_batch_norm_legit_no_training", "native_layer_norm"),
        *("batch_norm", "layer_norm"),
    ),
    "pooling": (
        *("_adaptive_avg_pool2d", "avg_pool2d", "max_pool2d_with_indices", "mean"),
        *("adaptive_avg_pool2d", "adaptive_avg_pool1d"),
    ),
}


def _fvcore(model: nn.Module, size: tuple[int, ...]) -> Row:
    """One image's forward pass in eval mode: fvcore's count doubled, ours, and both by operator."""
    mode = FakeTensorMode()
    copied = shape_copy(model, mode).eval()
    with mode, torch.no_grad(), TrueProducts() as ours:
        copied(torch.zeros(1, *size))
    from fvcore.nn import FlopCountAnalysis

    model.eval()
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model, torch.zeros(1, *size))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        theirs = {operator: 2 * int(count) for operator, count in analysis.by_operator().items()}
        skipped = analysis.unsupported_ops()
    return {
        "ours_flops": ours.by_operator.total(),
        "fvcore_doubled_flops": sum(theirs.values()),
        "ours": _grouped(ours.by_operator.items()),
        "fvcore_doubled": _grouped(theirs.items()),
        "skipped_by_fvcore": dict(sorted(skipped.items())),
    }


def _grouped(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    totals = dict.fromkeys((*_GROUPS, "elementwise"), 0)
    for operator, count in counts:
        totals[next((g for g, members in _GROUPS.items() if operator in members), "elementwise")] += count
    return totals


def counter_table(rows: Sequence[Row]) -> str:
    return table(
        (
            *("model", "forward", "full, torch's counter", "full, true", "overcount"),
            *("LoRA, true", "reduction as counted", "reduction, true"),
        ),
        (
            (
                row["model"],
                *(_mega(row[f"{key}_flops"]) for key in ("forward", "full_counted_by_torch", "full_true")),
                f"{row['overcount']:.2f}",
                _mega(row["lora_true_flops"]),
                f"{row['reduction_as_counted']:.1%}",
                f"{row['reduction_true']:.1%}",
            )
            for row in rows
        ),
    )


def method_table(rows: Sequence[Row]) -> str:
    names = [name for name in rows[0]["methods"] if name != "full"]
    return table(
        ("model", "full", *names),
        (
            (
                row["model"],
                _mega(row["full_all_flops"]),
                *(_saved(row["methods"][n]) for n in names),
            )
            for row in rows
        ),
    )


def _saved(found: Row | None) -> str:
    if found is None:
        return "-"
    return "fails" if "failure" in found else f"{100 * found['reduction']:.0f}"


def reachable_table(rows: Sequence[Row]) -> str:
    heads = [f"{100 * t:.0f} %{c}" for c in ("", ", cached") for t in THRESHOLDS]
    return table(
        ("model", "blocks", *heads),
        ((row["model"], row["blocks"] or "-", *map(_reached, row["reachable"])) for row in rows),
    )


def _reached(found: Row) -> str:
    if found["most_blocks"] is None:
        return "none"
    picks = [found["most_blocks"], found["most_parameters"]]
    # With none of the blocks in scope, every method trains the head.
    texts = [f"{pick['method']} {pick['blocks']}" if pick["blocks"] else "head" for pick in picks]
    return " / ".join(dict.fromkeys(texts)) + f" ({_count_of(picks[1]['trainable_parameters'])})"


def _count_of(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"


def fvcore_table(rows: Sequence[Row]) -> str:
    groups = (*_GROUPS, "elementwise")
    return table(
        ("model", "ours", "fvcore x 2", "difference", *groups),
        (
            (
                row["model"],
                _mega(checked["ours_flops"]),
                _mega(checked["fvcore_doubled_flops"]),
                f"{checked['ours_flops'] / checked['fvcore_doubled_flops'] - 1:+.2%}",
                *(f"{(checked['ours'][g] - checked['fvcore_doubled'][g]) / 1e6:+,.1f}" for g in groups),
            )
            for row in rows
            for checked in [row["fvcore"]]
        ),
    )


def _mega(flops: float) -> str:
    return f"{flops / 1e6:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three models, printed, nothing written")
    quick = parser.parse_args().quick
    rows = []
    for name in QUICK if quick else MODELS:
        print(name, flush=True)
        rows.append(study(name))
    tables = {
        "flops_truth": counter_table(rows),
        "flops_truth_methods": method_table(rows),
        "flops_truth_reachable": reachable_table(rows),
        "flops_truth_fvcore": fvcore_table(rows),
    }
    print(*tables.values(), sep="\n\n")
    if not quick:
        content = {
            "counted_batch_size": COUNTED_BATCH,
            "batch_size": BATCH,
            "epochs": EPOCHS,
            "rank": RANK,
            "torch": torch.__version__.split("+")[0],
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        write_tables(README, tables)
        main_ones = counter_table([row for row in rows if row["model"] in IN_README])
        write_tables(PROJECT_README, {"flops_truth": main_ones})


if __name__ == "__main__":
    main()
