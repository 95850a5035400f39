"""SPS curves: what a file must hold, and what stands between its points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepspec.curves import SpsCurve
from deepspec.errors import ConfigError


def write(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({"schema": 1, "verify_tokens": [1, 4], "steps_per_s": [10.0, 5.0], **changes}))
    return path


def test_it_is_the_time_of_a_step_that_is_interpolated_and_goes_on_in_proportion(tmp_path: Path) -> None:
    curve = SpsCurve.read(write(tmp_path / "curve.json"))
    assert [1 / speed for speed in curve.table(6)] == pytest.approx(
        [0.1, 0.1 + 0.1 / 3, 0.1 + 0.2 / 3, 0.2, 0.25, 0.3]
    )
    assert not curve.is_flat
    assert SpsCurve(verify_tokens=(1, 9), steps_per_s=(3.0, 3.0)).is_flat


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps_per_s": [10.0, -1.0]}, "steps_per_s"),
        ({"steps_per_s": [10.0]}, "give one speed for each number of tokens"),
        ({"verify_tokens": [4, 1]}, "has 1 after 4"),
        ({"speed": 1}, "speed"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(
    changes: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "curve.json", **changes)
    with pytest.raises(ConfigError, match=complaint) as raised:
        SpsCurve.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.json cannot be read"):
        SpsCurve.read(tmp_path / "absent.json")
