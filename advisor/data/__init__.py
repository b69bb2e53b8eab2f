"""The user's images: found in whatever form they lie, read as a person sees them, split, and looked over."""

from advisor.data.corruptions import Corruption, corrupt, parse_corruption
from advisor.data.loading import Dataset, load_data, load_unlabelled
from advisor.data.pixels import Normalisation

__all__ = [
    "Corruption",
    "Dataset",
    "Normalisation",
    "corrupt",
    "load_data",
    "load_unlabelled",
    "parse_corruption",
]
