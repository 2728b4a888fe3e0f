"""Whole models. ``MODELS`` names them."""

from polyfuse.models.fusion_model import FusionModel
from polyfuse.models.output import ModelOutput
from polyfuse.registry import Registry

MODELS = Registry("model", {"fusion_model": FusionModel})

__all__ = ["MODELS", "FusionModel", "ModelOutput"]
