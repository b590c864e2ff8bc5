"""Calibration: fit the shortcut and choose the thresholds on a few clips, and say what that costs in fidelity."""

from surgery.calibration.clips import CalibrationClip as CalibrationClip
from surgery.calibration.clips import gather_clips as gather_clips
from surgery.calibration.fit import fit_shortcut as fit_shortcut
from surgery.calibration.report import CalibrationReport as CalibrationReport
from surgery.calibration.whole import PromiseError as PromiseError
from surgery.calibration.whole import calibrate as calibrate
