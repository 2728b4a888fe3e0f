"""Calibration per set of present inputs: temperature, conformal sets, abstention, and the bundle a run saves."""

from polyfuse.calibrate.abstain import Abstention
from polyfuse.calibrate.bundle import Calibrated, Calibration, prior_logits
from polyfuse.calibrate.conformal import ConformalSets
from polyfuse.calibrate.temperature import MaskTemperature, halves

__all__ = [
    "Abstention",
    "Calibrated",
    "Calibration",
    "ConformalSets",
    "MaskTemperature",
    "halves",
    "prior_logits",
]
