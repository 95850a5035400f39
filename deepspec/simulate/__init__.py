"""A serving simulator: length policies under load, on a curve, without a model.

It drives the very policies that an engine drives; what a machine does is an SPS curve, and what becomes of
drafts is an acceptance model.
"""

from deepspec.simulate.acceptance import AcceptanceModel, DraftedRounds, FittedAcceptance
from deepspec.simulate.comparison import build_policy, compare_policies
from deepspec.simulate.recorded import RecordedAcceptance, RecordedRounds, read_rounds
from deepspec.simulate.serving import Served, serve
from deepspec.simulate.workload import Requests, Workload, closed_loop, open_loop

__all__ = [
    "AcceptanceModel",
    "DraftedRounds",
    "FittedAcceptance",
    "RecordedAcceptance",
    "RecordedRounds",
    "Requests",
    "Served",
    "Workload",
    "build_policy",
    "closed_loop",
    "compare_policies",
    "open_loop",
    "read_rounds",
    "serve",
]
