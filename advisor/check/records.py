"""What a check finds: plain records, no tensors. Bytes are those of tensors alone unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from advisor.records import Budget

Level = Literal["error", "warning", "note"]
# What a finding is about; the values are the rules' ids in every format.
Rule = Literal[
    "budget-broken",  # nothing fits the target's limits, or the candidate that was named doesn't
    "recommendation-flipped",  # another candidate than the baseline's
    "cost-increased",  # of the baseline's candidate, beyond what is allowed
    "cost-decreased",  # likewise: the baseline could be renewed
    "baseline-outdated",  # it was made for other limits, another input size, another batch size
    "baseline-missing",  # it has nothing of this target
    "model-failed",  # the model couldn't be loaded, or its costs not be told
    "accuracy-changed",  # of two answers that were found with data
    "machine-differs",  # with operators' workspace, which depends on the machine, the answer is another one
]
RULES: Mapping[Rule, str] = {
    "budget-broken": "An update breaks the target's limits",
    "recommendation-flipped": "The recommended fine-tuning method is no longer the baseline's",
    "cost-increased": "An update costs more than the baseline allows",
    "cost-decreased": "An update costs less than in the baseline",
    "baseline-outdated": "The baseline was made with another configuration",
    "baseline-missing": "The baseline knows nothing of this target",
    "model-failed": "The model could not be checked",
    "accuracy-changed": "The candidate gets another share of the held-out images right",
    "machine-differs": "What depends on the machine says otherwise",
}


@dataclass(frozen=True, slots=True)
class Figures:
    """What one update of a candidate costs, whatever the machine."""

    trainable_parameters: int
    delta_bytes: int  # to ship
    update_flops: int  # of the whole batch; 1 multiply-add = 2 FLOPs
    peak_bytes: int  # at the peak of tensors alone


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """A layer's share of them."""

    layer_type: str
    shape: tuple[int, ...]  # of its weight, () where it has none
    trainable_parameters: int
    update_flops: int
    peak_bytes: int  # held for it at the peak: weights, gradients, optimizer state, activations


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One model under one target: what a baseline keeps."""

    budget: Budget
    options: Mapping[str, str]  # all else that the costs depend on, such as the batch size, as configured
    recommended: str | None  # a candidate's id; None: nothing fits
    figures: Figures | None  # of the recommended candidate
    layers: Mapping[str, LayerFigures]  # by path, in the order of calls; `other`: what no layer does
    # What depends on the machine, by its kind (`machine_kind`): the peak with operators' workspace.
    machine_peak_bytes: Mapping[str, int] = field(default_factory=dict)
    # What would be recommended if tensors alone decided: tells whether the model or the machine changed
    # the answer. None: nothing would fit, or it wasn't asked.
    of_tensors: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A snapshot taken now, and what is needed to hold it against the baseline's."""

    snapshot: Snapshot
    machine: str  # the kind of this one
    fits: bool  # whether the choice, with workspace, meets every limit on this machine
    answer: str  # one sentence: the choice with its costs, or why there is none
    # The baseline's candidate where the choice is another one now: priced again. None: not known.
    of_baseline: Figures | None = None
    of_baseline_failure: str = ""  # why it can't be run on the model as it is now
    of_baseline_layers: Mapping[str, LayerFigures] = field(default_factory=dict)
    of_baseline_broken: tuple[str, ...] = ()  # the limits that it breaks now, in words
    of_baseline_machine_peak_bytes: int | None = None  # of the same candidate, with workspace
    leanest_layers: Mapping[str, LayerFigures] = field(
        default_factory=dict
    )  # of what takes least, if none fits
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer that costs other than before; None: it isn't there."""

    name: str
    before: LayerFigures | None
    after: LayerFigures | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to be said of one target."""

    rule: Rule
    level: Level
    message: str  # one line: what, by how much, and the mend
    layers: tuple[LayerChange, ...] = ()  # that caused it, the largest change first


@dataclass(frozen=True, slots=True)
class TargetReport:
    """What the check says of one model under one target."""

    model: str  # its name in the configuration
    target: str
    findings: tuple[Finding, ...]
    now: Checked | None  # None: the model failed
    before: Snapshot | None  # None: the baseline has none
    seconds: float = 0.0  # wall clock; in no format that is compared

    @property
    def failed(self) -> bool:
        """Whether it stops a change from going in."""
        return any(finding.level == "error" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All of them."""

    targets: tuple[TargetReport, ...]
    configuration: str  # the file that names the models, as formats show it; "" where none does
    lines: Mapping[str, int] = field(default_factory=dict)  # of that file: where each model is named, from 1
    allowed_increase: float = 0.05  # a fraction
    is_difference: bool = False  # of two things that are not held against each other: nothing passes or fails

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 2 a model could not be checked."""
        if any(f.rule == "model-failed" for target in self.targets for f in target.findings):
            return 2
        return 1 if any(target.failed for target in self.targets) else 0
