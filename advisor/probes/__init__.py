"""Short fine-tunes on the user's data: what each candidate is worth.

The function `race` is in the module of its name, which it would hide here.
"""

from advisor.probes.executor import executor_for
from advisor.probes.folds import CrossValidation, fold_count
from advisor.probes.race import RaceResult
from advisor.probes.scenarios import Situation, adapt_head, imprint_where_better, relabel, situate
from advisor.probes.train import (
    FineTune,
    Trainer,
    Trial,
    accuracy_of,
    head_of,
    in_quick_layout,
    judged_in_groups,
    key_of,
    trained_as,
    training_of,
)

__all__ = [
    "CrossValidation",
    "FineTune",
    "RaceResult",
    "Situation",
    "Trainer",
    "Trial",
    "accuracy_of",
    "adapt_head",
    "executor_for",
    "fold_count",
    "head_of",
    "imprint_where_better",
    "in_quick_layout",
    "judged_in_groups",
    "key_of",
    "relabel",
    "situate",
    "trained_as",
    "training_of",
]
