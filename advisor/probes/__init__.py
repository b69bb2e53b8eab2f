"""Short fine-tunes on the user's data: what each candidate is worth.

The function `race` is in the module of its name, which it would hide here.
"""

from advisor.probes.executor import executor_for
from advisor.probes.folds import CrossValidation, fold_count
from advisor.probes.gradients import captured
from advisor.probes.judging import ACCURACY, Metric, by_class, class_of_recall, judged_in_groups, metric_of
from advisor.probes.race import RaceResult
from advisor.probes.scenarios import Situation, adapt_head, imprint_where_better, relabel, situate
from advisor.probes.train import (
    FineTune,
    Trainer,
    Trial,
    in_quick_layout,
    key_of,
    trained_as,
    training_of,
)
from advisor.training.loop import head_of

__all__ = [
    "ACCURACY",
    "CrossValidation",
    "FineTune",
    "Metric",
    "RaceResult",
    "Situation",
    "Trainer",
    "Trial",
    "adapt_head",
    "by_class",
    "captured",
    "class_of_recall",
    "executor_for",
    "fold_count",
    "head_of",
    "imprint_where_better",
    "in_quick_layout",
    "judged_in_groups",
    "key_of",
    "metric_of",
    "relabel",
    "situate",
    "trained_as",
    "training_of",
]
