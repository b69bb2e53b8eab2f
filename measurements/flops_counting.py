"""Study: FLOPs of a training step as torch's counter has them, against the true multiply-adds.

    python -m measurements.flops_counting            # five models, about half a minute
    python -m measurements.flops_counting --quick    # one model

Writes results/flops_counting.json and the tables in the READMEs. Nothing is downloaded: FLOPs do not
depend on the weights' values.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from advisor.costs.flops import operator_flops
from advisor.costs.simulate import shape_copy
from advisor.methods.update import begin, update
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers

MODELS = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0")
SIZE, BATCH = (3, 224, 224), 2  # BatchNorm in train mode wants more than one sample
RESULTS = Path(__file__).parent / "results" / "flops_counting.json"
READMES = (Path(__file__).parent / "README.md", Path(__file__).parent.parent / "README.md")
_aten = torch.ops.aten
PRODUCTS = {_aten.convolution, _aten.convolution_backward, _aten.mm, _aten.addmm, _aten.bmm}


class TrueProducts(TorchDispatchMode):
    """Sums `operator_flops` over what torch's counter counts too: convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            flops = operator_flops(func, args, kwargs or {}, result)
            assert flops is not None
            self.total += flops.result + flops.input_gradient + flops.weight_gradient
        return result


def count(name: str, candidate: Candidate | None) -> tuple[float, float]:
    """(torch's count, true count) in FLOPs per sample; of a forward pass where there is no candidate."""
    model = torchvision.models.get_model(name, weights=None)
    census = take_census(model, SIZE)
    mode = FakeTensorMode()
    copied = shape_copy(model, mode)
    with mode:
        images, labels = torch.zeros(BATCH, *SIZE), torch.zeros(BATCH, dtype=torch.int64)
        theirs, ours = FlopCounterMode(display=False), TrueProducts()
        if candidate is None:
            copied.eval()
            with theirs, ours, torch.no_grad():
                copied(images)
        else:
            trainable, optimizer = begin(copied, census, candidate, 1e-3)
            with theirs, ours:
                update(trainable, optimizer, images, labels)
    return theirs.get_total_flops() / BATCH, ours.total / BATCH


def study(models: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    # On every ungrouped convolution, and the head: what peers can do on these networks.
    lora = Candidate.of("lora", {"rank": 4, "depthwise": "skip"}, Levers())
    for name in models:
        _, forward = count(name, None)
        full_counted, full = count(name, Candidate("full"))
        lora_counted, lora_true = count(
            name, lora if name != "resnet18" else Candidate.of("lora", {"rank": 4}, Levers())
        )
        rows.append(
            {
                "model": name,
                "forward_flops": forward,
                "full_counted_by_torch_flops": full_counted,
                "full_true_flops": full,
                "overcount": full_counted / full,
                "lora_counted_by_torch_flops": lora_counted,
                "lora_true_flops": lora_true,
                "reduction_as_counted": 1 - lora_counted / full_counted,
                "reduction_true": 1 - lora_true / full,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        (
            "| model | forward | full, torch's counter | full, true | overcount | LoRA, true "
            "| reduction as counted | reduction, true |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mega = {key: f"{value / 1e6:,.0f}" for key, value in row.items() if key.endswith("_flops")}
        lines.append(
            f"| {row['model']} | {mega['forward_flops']} | {mega['full_counted_by_torch_flops']} "
            f"| {mega['full_true_flops']} | {row['overcount']:.2f} | {mega['lora_true_flops']} "
            f"| {row['reduction_as_counted']:.1%} | {row['reduction_true']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one model, printed, nothing written")
    quick = parser.parse_args().quick
    rows = study(MODELS[1:2] if quick else MODELS)
    print(table(rows))
    if not quick:
        content = {
            "input_size": SIZE,
            "batch_size": BATCH,
            "torch": torch.__version__.split("+")[0],
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(content, indent=2) + "\n")
        for readme in READMES:
            before, start, rest = readme.read_text().partition("<!-- flops_counting -->\n")
            _, end, after = rest.partition("<!-- /flops_counting -->")
            readme.write_text(f"{before}{start}\n{table(rows)}\n\n{end}{after}")


if __name__ == "__main__":
    main()
