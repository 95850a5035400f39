"""Registers the built-in tasks through the hook that plugins use."""

from __future__ import annotations

from deepspec.hookspecs import hookimpl


@hookimpl
def deepspec_parts() -> list[str]:
    """Task names and where their classes live."""
    return [
        "stdlib=deepspec.evaluate.tasks:Stdlib",
        "prose=deepspec.evaluate.tasks:Prose",
        "gsm8k=deepspec.evaluate.tasks:Gsm8k",
        "math500=deepspec.evaluate.tasks:Math500",
        "humaneval=deepspec.evaluate.tasks:HumanEval",
        "mbpp=deepspec.evaluate.tasks:Mbpp",
        "mt-bench=deepspec.evaluate.tasks:MtBench",
        "alpaca=deepspec.evaluate.tasks:Alpaca",
    ]
