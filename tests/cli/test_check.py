"""``deepspec check``: a verdict for each property, as a table of 80 columns or as JSON, and exit codes."""

from __future__ import annotations

import re

import pytest

from deepspec.exact import check
from deepspec.exact.properties import Finding
from tests.command_line import run

GOOD = Finding(error=2e-16, allowed=1e-12, holds="as it should be", broken="never said")
BAD = Finding(error=0.25, allowed=1e-12, holds="never said", broken="it peeks, and the output is biased")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PROPERTIES", (("output law", lambda _: GOOD), ("policy", lambda _: BAD)))


def test_a_shipped_strategy_passes_every_property() -> None:
    ran = run("check", "dspark", "--json")
    assert ran.code == 0
    assert set(ran.json) == {"schema", "strategy", "passed", "properties"}
    assert (ran.json["schema"], ran.json["strategy"], ran.json["passed"]) == (1, "dspark", True)
    names = [found["name"] for found in ran.json["properties"]]
    assert names == [name for name, _ in check.PROPERTIES]
    for found in ran.json["properties"]:
        assert set(found) == {"name", "passed", "detail", "max_error"}
        assert found["passed"]
        assert found["detail"]


@pytest.mark.usefixtures("_quick")
def test_a_failure_says_why_and_exits_with_1() -> None:
    ran = run("check", "dflash")
    assert ran.code == 1
    assert ran.err == ""
    words = " ".join(ran.out.split())
    assert "output law passed 2e-16 as it should be" in words
    assert "policy FAILED 2e-01 it peeks, and the output is biased" in words
    assert max(map(len, ran.out.splitlines())) <= 80
    assert run("check", "dflash", "--json").code == 1


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("name", ["toy", "ce", "dsprak", "policy:markov", "cook:markov"])
def test_what_is_no_strategy_or_part_is_bad_input(name: str) -> None:
    ran = run("check", name)
    assert ran.code == 2
    assert ran.out == ""
    assert name in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(("name", "meant"), [("cee", ""), ("mt-bensh", ""), ("head:markof", "markov")])
def test_only_names_that_it_takes_are_suggested_and_each_once(name: str, meant: str) -> None:
    found = re.search(r"known: ([^;]*?)(?:; did you mean '(.*)'\?)?\n$", run("check", name).err)
    assert found is not None
    known = found[1].split(", ")
    assert len(known) == len(set(known))
    assert {"dflash", "markov", "identity", "fixed", "token"} <= set(known)
    assert not {"ce", "stdlib"} & set(known)
    assert (found[2] or "") == meant


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    "name", ["markov", "head:markov", "none", "threshold", "identity", "token", "dflash"]
)
def test_parts_of_every_kind_are_found(name: str) -> None:
    assert run("check", name, "--json").json["strategy"] == name.rpartition(":")[2]


@pytest.mark.usefixtures("_quick")
def test_a_strategy_is_checked_as_it_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(check, "PROPERTIES", (("policy", lambda subject: checked.append(subject) or GOOD),))
    assert run("check", "mtp", "--set", "head.type=rnn", "--set", "draft_length=2").code == 0
    (subject,) = checked
    assert (subject.strategy.head.type, subject.strategy.draft_length) == ("rnn", 2)


def test_an_error_that_is_not_a_number_fails_and_is_left_out_of_the_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = Finding(error=float("nan"), allowed=1e-12, holds="", broken="not a number")
    monkeypatch.setattr(check, "PROPERTIES", (("noise", lambda _: broken),))
    ran = run("check", "dspark", "--json")
    assert ran.code == 1
    assert ran.json["properties"] == [
        {"name": "noise", "passed": False, "detail": "not a number", "max_error": None}
    ]
