"""An independent draft model: any causal language model with the target's tokenizer, distilled on it."""

from __future__ import annotations

from deepspec import Strategy, hookimpl
from deepspec.strategy import Objective


@hookimpl
def deepspec_strategies() -> list[Strategy]:
    """One composition, whose model is a small new one unless ``drafter.model`` names another."""
    return [
        Strategy(
            name="draft_model",
            drafter="draft_model",
            objective=Objective(terms={"soft_ce": 0.1, "l1": 0.9}, position_decay=None),
        )
    ]


@hookimpl
def deepspec_parts() -> list[str]:
    """The drafter, imported when it is built."""
    return ["draft_model=deepspec_strategies.draft_model.drafter:DraftModel"]
