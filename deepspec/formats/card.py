"""The model card of an exported drafter: what it is, where from, what was measured, how it is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepspec.environment import versions
from deepspec.runs import Run, evaluation_of

if TYPE_CHECKING:
    from deepspec.composed import Composed
    from deepspec.formats.foreign import Foreign
    from deepspec.formats.layout import EngineVerdict

_ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}


def model_card(
    subject: Run | Composed,
    foreign: Foreign,
    target: str,
    engines: tuple[EngineVerdict, ...],
    commands: Mapping[str, str],
) -> str:
    """A README.md with the front matter that the hub reads; ``commands`` are the serving lines by engine."""
    strategy = subject.parts.strategy
    base = [f"base_model: {target}"] if target.count("/") == 1 and not target.startswith((".", "/")) else []
    front = [
        "---",
        *base,
        "library_name: deepspec",
        "tags:",
        "- speculative-decoding",
        f"- {strategy.name}",
        "---",
    ]
    facts = "\n".join(f"| {name} | {value} |" for name, value in foreign.layout.facts.items())
    return "\n".join(
        [
            *front,
            f"# A {strategy.name} draft model for {target}",
            "",
            f"It drafts for {_named_target(subject, target)} and is of no use with another model. What is",
            "decoded with it has the target's own distribution.",
            "",
            "## Where it is from",
            "",
            *_provenance(subject),
            f"- written by DeepSpec {versions()['deepspec']} in the layout {foreign.format.name}",
            "",
            "## What was measured",
            "",
            _measured(subject),
            "",
            "## What breaks silently",
            "",
            "| | |",
            "|---|---|",
            facts,
            "",
            "## Serving",
            "",
            *[line for verdict in engines for line in _serving(verdict, commands)],
        ]
    )


def _named_target(subject: Run | Composed, target: str) -> str:
    found = subject.target
    commit = f" at commit {found.revision}" if found.revision else ""
    return f"{target}{commit} (weights {found.fingerprint[:12]})"


def _provenance(subject: Run | Composed) -> list[str]:
    if not isinstance(subject, Run):
        origin = subject.origin
        return [] if origin is None else [f"- converted from {origin.name}, layout {origin.format}"]
    config, cost = subject.config, subject.cost
    data = ", ".join(config.data.paths) or "text that ships with DeepSpec"
    lines = [f"- trained for {subject.step:,} steps on {data}; seed {config.seed}"]
    if cost.train_tokens:
        lines.append(f"- {cost.train_tokens:,} tokens in {cost.train_seconds:,.0f} s")
    return lines


def _measured(subject: Run | Composed) -> str:
    report: Mapping[str, Any] | None = evaluation_of(subject.path) if isinstance(subject, Run) else None
    length = (report or {}).get("accepted_length") or {}
    if report is None or length.get("mean") is None:
        return "Nothing yet; `deepspec eval` measures the accepted length."
    low, high = length["ci95"]
    tasks = ", ".join(
        f"{name} {task['accepted_length']:.2f}"
        for name, task in report["tasks"].items()
        if task["accepted_length"] is not None
    )
    return (
        f"Accepted length τ = {length['mean']:.3f} tokens a round, bonus token included (95 % interval "
        f"{low:.3f} to "
        f"{high:.3f}; {tasks}): {report['num_prompts']} prompts, {report['num_rounds']:,} rounds at "
        "temperature "
        f"{report['temperature']:g}, {report['draft_length']} draft tokens, {report['verifier']} "
        "verification, on "
        f"{report['device']}."
    )


def _serving(verdict: EngineVerdict, commands: Mapping[str, str]) -> list[str]:
    name = _ENGINES[verdict.engine]
    if verdict.loads is False:
        return [f"{name} cannot load it: {verdict.why}.", ""]
    note = f" ({verdict.why})" if verdict.why else ""
    return [f"{name}{note}:", "", "```sh", commands[verdict.engine], "```", ""]
