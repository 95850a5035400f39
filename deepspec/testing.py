"""For the tests of plugins: a target of known law, and the checks of ``deepspec check``.

from deepspec.testing import check_part

def test_my_policy_keeps_the_output_law() -> None:
    check_part(MyPolicy).raise_if_failed()
"""

from __future__ import annotations

from deepspec.exact.check import check_part, check_strategy
from deepspec.exact.report import Property, Report
from deepspec.exact.toy import ToyTarget

__all__ = ["Property", "Report", "ToyTarget", "check_part", "check_strategy"]
