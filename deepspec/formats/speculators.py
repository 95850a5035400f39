"""What all layouts of speculators share: the block that vLLM requires, and what it says of the target."""

from __future__ import annotations

from typing import Any

from deepspec.formats.header import Header
from deepspec.formats.layout import Draft, TargetClaim

#: The release whose reader and writer were compared with.
_VERSION = "0.9.0"


def speculators_claim(header: Header) -> TargetClaim:
    """The target of a speculators checkpoint."""
    decoder = header.config["transformer_layer_config"]
    verifier = (header.config.get("speculators_config") or {}).get("verifier") or {}
    return TargetClaim(
        hidden_size=int(header.config.get("target_hidden_size") or decoder["hidden_size"]),
        vocab_size=int(decoder["vocab_size"]),
        name=verifier.get("name_or_path"),
    )


def speculators_config(algorithm: str, num_tokens: int, draft: Draft) -> dict[str, Any]:
    """The fields around a new drafter's: its method, and the target by name."""
    greedy = {
        "proposal_type": "greedy",
        "speculative_tokens": num_tokens,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    verifier = {
        "name_or_path": draft.target_name,
        "architectures": list(draft.target.model.config.architectures or ()),
    }
    return {
        "speculators_version": _VERSION,
        "speculators_config": {
            "algorithm": algorithm,
            "proposal_methods": [greedy],
            "default_proposal_method": "greedy",
            "verifier": verifier,
        },
    }
