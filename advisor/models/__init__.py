"""A user's file becomes a module, and the module a census of its layers."""

from advisor.models.layers import take_census
from advisor.models.load import LoadedModel, load_model, load_module

__all__ = ["LoadedModel", "load_model", "load_module", "take_census"]
