"""Training of draft models: anchors, objective, optimiser, checkpoints, and :func:`train`."""

from deepspec.train.session import TrainingInterruptedError, train
from deepspec.train.terms import GradedRows, ObjectiveTerm

__all__ = ["GradedRows", "ObjectiveTerm", "TrainingInterruptedError", "train"]
