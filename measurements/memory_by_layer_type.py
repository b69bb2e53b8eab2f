"""Study: is what PEFT saves of an update's memory a matter of layer types?

    python -m measurements.memory_by_layer_type            # eight classifiers and a decoder, about a minute
    python -m measurements.memory_by_layer_type --quick    # three networks, batch 1 and 8, under 2 minutes

The paper behind this project (arXiv 2507.23536) finds that on depthwise-separable networks PEFT saves
half as much memory as on large transformers. Here: simulated peaks (`measurements.memory_accuracy`
shows how exact they are) of LoRA at four ranks, of the head alone and of the norms, against full
fine-tuning, all with Adam, and the layers whose outputs are held for the backward pass.
Writes results/memory_by_layer_type.json and the tables in README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from advisor.costs import Simulator
from advisor.models.layers import take_census
from advisor.records import LAYER_TYPES, Candidate, Cost, Levers
from measurements.tables import README, table, write_tables

SEPARABLE = ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0")
TRANSFORMERS = ("vit_b_16", "decoder")
MODELS = ("resnet18", "resnet50", *SEPARABLE, "convnext_tiny", *TRANSFORMERS)
QUICK = ("resnet18", "mobilenet_v2", "decoder")
BATCHES = (1, 8, 32)
SPLIT_BATCH = 8  # of the table by layer type
RANKS = (1, 4, 16, 64)
CANDIDATES = {
    **{f"LoRA {rank}": Candidate.of("lora", {"rank": rank}, Levers()) for rank in RANKS},
    "head": Candidate("head"),
    "norm": Candidate("norm"),
}
WIDTH, BLOCKS, HEADS, TOKENS, VOCABULARY = 768, 12, 12, 512, 32_000
MIB = 2**20
RESULTS = Path(__file__).parent / "results" / "memory_by_layer_type.json"
Row = dict[str, Any]


class Decoder(nn.Module):
    """A language model's decoder, (N, WIDTH, TOKENS, 1) embedded tokens -> (N, VOCABULARY) next-token logits.

    The embedding is left out: it is a table look-up that adapters don't touch. Only the last token is
    classified, as in fine-tuning on labelled texts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DecoderBlock() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.blocks(tokens.flatten(2).transpose(1, 2))
        return self.head(self.norm(x[:, -1]))


class DecoderBlock(nn.Module):
    """Causal attention, then a multilayer perceptron, each after a norm and beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm_1(x)
        query, key, value = (
            projection(normed).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


def study(name: str, batches: Sequence[int], *, workspace: bool) -> list[Row]:
    """One row for each batch and candidate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Decoder() if name == "decoder" else torchvision.models.get_model(name, weights=None)
    size = (WIDTH, TOKENS, 1) if name == "decoder" else (3, 224, 224)
    census = take_census(model, size)
    simulator = Simulator(model, census, workspace=workspace)
    rows = []
    for batch in batches:
        costs = {
            label: simulator.cost(candidate, batch)
            for label, candidate in {"full": Candidate("full"), **CANDIDATES}.items()
        }
        full = costs["full"].peak_memory_bytes
        for label, cost in costs.items():
            rows.append({"model": name, "batch": batch, "label": label} | _row(cost, full))
    return rows


def _row(cost: Cost, full: int) -> Row:
    memory = cost.memory
    return {
        "peak_bytes": cost.peak_memory_bytes,
        "saved_against_full": 1 - cost.peak_memory_bytes / full,
        "trainable_parameters": cost.trainable_parameters,
        "gradient_and_state_bytes": memory.gradients + memory.optimizer_state,
        "activation_bytes": memory.activations + memory.temporaries,
        "workspace_bytes": memory.workspace,
        "kept_for_backward_bytes": {
            kind: split.saved_bytes for kind, split in cost.by_layer_type.items() if split.saved_bytes
        },
        "fidelity": cost.fidelity,
    }


def saving_table(rows: Sequence[Row], batches: Sequence[int]) -> str:
    heads = ("model", "batch", "full MiB", "activations", "gradients and state", *CANDIDATES)
    lines = []
    for full in (row for row in rows if row["label"] == "full"):
        others = {r["label"]: r for r in rows if (r["model"], r["batch"]) == (full["model"], full["batch"])}
        lines.append(
            (
                full["model"] if full["batch"] == batches[0] else "",
                full["batch"],
                f"{full['peak_bytes'] / MIB:,.0f}",
                f"{full['activation_bytes'] / full['peak_bytes']:.0%}",
                f"{_state_share(full):.0%}",
                *(f"{100 * others[label]['saved_against_full']:.0f}" for label in CANDIDATES),
            )
        )
    return table(heads, lines)


def _state_share(full: Row) -> float:
    """Float32 gradients and Adam's two moments, were all held at the peak: all that LoRA could do without."""
    return 12 * full["trainable_parameters"] / full["peak_bytes"]


def explained(rows: Sequence[Row]) -> float:
    """Correlation, over models and batches, of what LoRA saves with the share of gradients and state."""
    fulls = [row for row in rows if row["label"] == "full"]
    loras = [row for row in rows if row["label"] == "LoRA 4"]
    return statistics.correlation(
        [_state_share(row) for row in fulls], [row["saved_against_full"] for row in loras]
    )


def split_table(rows: Sequence[Row]) -> str:
    """What is kept for the backward pass, by the layers that made it."""
    chosen = [r for r in rows if r["batch"] == SPLIT_BATCH and r["label"] in ("full", "LoRA 4", "norm")]
    kinds = [kind for kind in LAYER_TYPES if any(r["kept_for_backward_bytes"].get(kind) for r in chosen)]
    return table(
        ("model", "trained", "kept MiB", *kinds),
        (
            (
                row["model"] if row["label"] == "full" else "",
                row["label"],
                f"{total / MIB:,.0f}",
                *(f"{100 * row['kept_for_backward_bytes'].get(kind, 0) / total:.0f}" for kind in kinds),
            )
            for row in chosen
            for total in [sum(row["kept_for_backward_bytes"].values())]
        ),
    )


def claim_table(rows: Sequence[Row], batches: Sequence[int]) -> str:
    """Mean savings of the two families, and the one as a share of the other."""
    lines = []
    for batch in batches:
        for label in CANDIDATES:
            separable, transformers = (
                statistics.mean(found)
                for family in (SEPARABLE, TRANSFORMERS)
                for found in [
                    [
                        row["saved_against_full"]
                        for row in rows
                        if (row["batch"], row["label"]) == (batch, label) and row["model"] in family
                    ]
                ]
            )
            lines.append((batch, label, separable, transformers, separable / transformers))
    return table(
        ("batch", "trained", "depthwise-separable", "transformers", "ratio"),
        ((batch, label, f"{s:.0%}", f"{t:.0%}", f"{ratio:.2f}") for batch, label, s, t, ratio in lines),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three networks, printed, nothing written")
    parser.add_argument("--tensors-alone", action="store_true", help="without what kernels hold: faster")
    given = parser.parse_args()
    batches = BATCHES[:2] if given.quick else BATCHES
    rows: list[Row] = []
    for name in QUICK if given.quick else MODELS:
        print(name, flush=True)
        rows += study(name, batches, workspace=not given.tensors_alone)
    tables = {
        "memory_by_layer_type": saving_table(rows, batches),
        "memory_by_layer_type_claim": claim_table(rows, batches),
        "memory_by_layer_type_split": split_table(rows),
    }
    print(*tables.values(), sep="\n\n")
    print(f"\nLoRA 4's saving and the share of gradients and state: correlation {explained(rows):.3f}")
    if not given.quick:
        content = {
            "optimizer": "adam",
            "workspace": not given.tensors_alone,
            "torch": torch.__version__.split("+")[0],
            "threads": torch.get_num_threads(),
            "decoder": {"width": WIDTH, "blocks": BLOCKS, "tokens": TOKENS, "vocabulary": VOCABULARY},
            "correlation_of_lora_4_with_gradients_and_state": explained(rows),
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        write_tables(README, tables)


if __name__ == "__main__":
    main()
