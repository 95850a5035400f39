"""N-gram lookup for DeepSpec: a model-free drafter, and the strategy ``ngram`` that is made of it."""

from __future__ import annotations

from deepspec import Strategy, hookimpl

DEEPSPEC_HOOK_API = 1


@hookimpl
def deepspec_strategies() -> list[Strategy]:
    """The drafter alone: proposals have no logits to correct and no confidence to judge them by."""
    return [Strategy(name="ngram", drafter="ngram")]


@hookimpl
def deepspec_parts() -> list[str]:
    """The drafter, imported when it is built."""
    return ["ngram=deepspec_ngram.proposer:NgramProposer"]
