"""Calibration: fit the shortcut and choose the thresholds on a few clips, and say what that costs in fidelity."""

from surgery.calibration.clips import CalibrationClip, SkippedClip, gather_clips
from surgery.calibration.fit import FitResult, fit_shortcut
from surgery.calibration.report import CalibrationReport
from surgery.calibration.whole import PromiseError, calibrate

__all__ = [
    "CalibrationClip",
    "CalibrationReport",
    "FitResult",
    "PromiseError",
    "SkippedClip",
    "calibrate",
    "fit_shortcut",
    "gather_clips",
]
