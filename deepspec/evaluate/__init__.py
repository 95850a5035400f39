"""How good is a drafter: accepted length, acceptance per position, and speed, by real decoding."""

from deepspec.evaluate.acceptance import Acceptance, Interval, PositionRates, measure_acceptance
from deepspec.evaluate.calibration import CalibrationReport, calibrate
from deepspec.evaluate.comparison import Comparison, compare
from deepspec.evaluate.measure import evaluate
from deepspec.evaluate.report import EvalReport, TaskResult
from deepspec.evaluate.tasks import EvalTask

__all__ = [
    "Acceptance",
    "CalibrationReport",
    "Comparison",
    "EvalReport",
    "EvalTask",
    "Interval",
    "PositionRates",
    "TaskResult",
    "calibrate",
    "compare",
    "evaluate",
    "measure_acceptance",
]
