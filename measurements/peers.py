"""Study: our adapters against Hugging Face peft's and LyCORIS's, on the same layers of the same models.

    python -m measurements.peers           # four models, about 15 minutes
    python -m measurements.peers --quick   # two models and methods, under 2 minutes

Every party adapts the same convolutions and linear layers with rank 4 (depthwise ones, which peft
refuses, are left alone), trains the head whole, with Adam, BatchNorm in train mode, and runs the
same update. What differs is how a layer's change is made and held. Times are taken in turn within
one process; compare the ratios. Writes results/peers.json and the tables in README.md. peft and
lycoris_lora come with the extra `peers`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from advisor.costs.allocator import allocator_peak
from advisor.methods import get_method
from advisor.models.layers import take_census
from advisor.parts.attachment import Trainable, head_parameters
from advisor.parts.low_rank import ADAPTED_TYPES
from advisor.records import Census, Levers
from advisor.training.update import update
from measurements.memory_accuracy import SIZE
from measurements.tables import README, table, write_tables

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0")
QUICK = ("resnet18", "mobilenet_v2")
METHODS = ("lora", "dora", "loha", "lokr", "ia3")
RANK, ALPHA, BATCH = 4, 8.0, 8
RESULTS = Path(__file__).parent / "results" / "peers.json"
MIB = 2**20


@dataclass(slots=True)
class Party:
    """One library's adapter of one model."""

    trainable: Trainable
    merge: Callable[[], nn.Module]

    def adapters(self, head: str) -> list[nn.Parameter]:
        """What is trained beside the head."""
        return [p for name, p in self.trainable.parameters.items() if not name.startswith(f"{head}.")]


def ours(method: str, model: nn.Module, census: Census, targets: list[str]) -> Party:
    """The method on the census's target layers, and the norms that (IA)^3 is folded into."""
    kept = tuple(
        layer
        for layer in census.layers
        if layer.layer_type not in ADAPTED_TYPES or layer.name in targets or layer.name == census.head
    )
    setting = {} if method == "ia3" else {"rank": RANK}
    trainable = get_method(method).attach(model, replace(census, layers=kept), setting)
    return Party(trainable, lambda: get_method(method).merge(model))


def peft(method: str, model: nn.Module, census: Census, targets: list[str]) -> Party:
    """Hugging Face peft, injected into the model in place."""
    import peft as library
    from peft.tuners.tuners_utils import BaseTunerLayer

    config: Any = {
        "lora": lambda: library.LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=targets),
        "dora": lambda: library.LoraConfig(
            r=RANK, lora_alpha=int(ALPHA), target_modules=targets, use_dora=True
        ),
        "loha": lambda: library.LoHaConfig(r=RANK, alpha=int(ALPHA), target_modules=targets),
        "lokr": lambda: library.LoKrConfig(r=RANK, alpha=int(ALPHA), target_modules=targets),
        "ia3": lambda: library.IA3Config(target_modules=targets, feedforward_modules=[]),
    }[method]()
    model = library.inject_adapter_in_model(config, model)

    def merge() -> nn.Module:
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
        return model

    return Party(_trained(model, census), merge)


def lycoris(method: str, model: nn.Module, census: Census, targets: list[str]) -> Party:
    """LyCORIS's modules, one for each layer."""
    from lycoris.modules import ia3, locon, loha, lokr

    kind: Any = {"lora": locon.LoConModule, "dora": locon.LoConModule, "loha": loha.LohaModule}.get(method)
    kind = kind or {"lokr": lokr.LokrModule, "ia3": ia3.IA3Module}[method]
    options = {"weight_decompose": True} if method == "dora" else {}
    model.requires_grad_(False)
    attached = nn.ModuleList(
        kind(name.replace(".", "_"), model.get_submodule(name), 1.0, RANK, ALPHA, **options)
        for name in targets
    )
    for module in attached:
        module.apply_to()
    model.add_module("lycoris", attached)  # counted with the model, and never called by its own forward

    def merge() -> nn.Module:
        for module in attached:
            module.restore()
            module.merge_to(1.0)
        return model

    return Party(_trained(model, census), merge)


def _trained(model: nn.Module, census: Census) -> Trainable:
    for parameter in head_parameters(model, census):
        parameter.requires_grad_(True)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Trainable(model, parameters, "updated")


PARTIES = {"ours": ours, "peft": peft, "lycoris": lycoris}


def compare(name: str, method: str, repeats: int) -> list[dict[str, Any]]:
    """A row for each party."""
    base = torchvision.models.get_model(name, weights=None)
    for _ in range(2):  # statistics that are not all zero and one
        base(torch.randn(4, *SIZE))
    census = take_census(base, SIZE)
    targets = [
        layer.name
        for layer in census.of_type(*ADAPTED_TYPES)
        if layer.name != census.head and layer.layer_type != "depthwise"
    ]
    rows, running = [], {}
    for party, attach in PARTIES.items():
        row: dict[str, Any] = {"model": name, "method": method, "party": party}
        rows.append(row)
        try:
            row["merge_error"] = _merge_error(attach(method, copy.deepcopy(base), census, targets), census)
            trainable = attach(method, copy.deepcopy(base), census, targets).trainable
            row["trainable_parameters"] = sum(p.numel() for p in trainable.parameters.values())
            trainable.train_mode()
            optimizer = get_method("full").optimizer(trainable, Levers(), 1e-4)
            images, labels = torch.randn(BATCH, *SIZE), torch.zeros(BATCH, dtype=torch.int64)
            update(trainable, optimizer, images, labels)
            gc.collect()
            row["peak_bytes"] = allocator_peak(trainable, optimizer, images, labels)
            running[party] = (trainable, optimizer, images, labels, [])
        except Exception as error:  # noqa: BLE001 - what a library refuses is a result
            row["fails"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    for _ in range(repeats):
        for trainable, optimizer, images, labels, seconds in running.values():
            begun = time.perf_counter()
            update(trainable, optimizer, images, labels)
            seconds.append(time.perf_counter() - begun)
    for row in rows:
        if row["party"] in running:
            row["seconds"] = running[row["party"]][-1]
    return rows


def _merge_error(party: Party, census: Census) -> float:
    """Largest difference of outputs between the adapted and the merged model, of the outputs' largest."""
    images = torch.randn(2, *SIZE)
    assert census.head is not None
    with torch.no_grad():
        for parameter in party.adapters(census.head):
            parameter.add_(0.02 * torch.randn_like(parameter))
        before = party.trainable.model.eval()(images)
        after = party.merge().eval()(images)
    return float((after - before).abs().max() / before.abs().max())


def rows_shown(rows: list[dict[str, Any]]) -> str:
    heads = (
        *("model", "method", "trainable: ours", "peft", "LyCORIS", "time: peft", "LyCORIS"),
        *("memory, MiB: ours", "peft", "LyCORIS", "merge error: ours", "peft", "LyCORIS"),
    )
    lines = []
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["method"]), {})[row["party"]] = row
    for (model, method), by_party in groups.items():
        every = [by_party[party] for party in PARTIES]

        def cells(key: str, shown: Callable[[Any], str], every: list[Any] = every) -> list[str]:
            return [shown(row[key]) if key in row else "fails" for row in every]

        middle = statistics.median(by_party["ours"]["seconds"])
        times = cells("seconds", lambda seconds, own=middle: f"{statistics.median(seconds) / own:.2f}")[1:]
        shown = (
            *(model, method, *cells("trainable_parameters", lambda count: f"{count / 1000:,.0f} k"), *times),
            *cells("peak_bytes", lambda size: f"{size / MIB:,.0f}"),
            *cells("merge_error", lambda error: f"{error:.0e}"),
        )
        lines.append(shown)
    return table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two models, two methods, nothing written")
    quick = parser.parse_args().quick
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name in QUICK if quick else MODELS:
        for method in ("lora", "ia3") if quick else METHODS:
            rows += compare(name, method, 3 if quick else 9)
            for row in rows[-len(PARTIES) :]:
                shown = row.get("fails") or f"{row['peak_bytes'] / MIB:8.1f} MiB {min(row['seconds']):.3f} s"
                print(f"{name:16s} {method:5s} {row['party']:8s} {shown}", flush=True)
    print(rows_shown(rows))
    if quick:
        return
    content = {
        "rank": RANK,
        "batch": BATCH,
        "input_size": SIZE,
        "torch": torch.__version__.split("+")[0],
        "peft": version("peft"),
        "lycoris_lora": version("lycoris_lora"),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    write_tables(README, {"peers": rows_shown(rows)})


if __name__ == "__main__":
    main()
