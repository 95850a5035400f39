"""The lines that serve a drafter beside its target, with ``{target}`` and ``{draft}`` for their places."""

from __future__ import annotations

import json


def vllm_command(method: str, num_tokens: int, *, has_model: bool = True) -> str:
    """vLLM's line for a method that drafts ``num_tokens``; without a model it is in the target's."""
    options = {
        "method": method,
        **({"model": "{draft}"} if has_model else {}),
        "num_speculative_tokens": num_tokens,
    }
    place = "{target}" if has_model else "{draft}"
    return f"vllm serve {place} --speculative-config '{json.dumps(options)}'"


def sglang_command(algorithm: str, num_tokens: int, *flags: str, has_model: bool = True) -> str:
    """SGLang's line; it counts the anchor among the draft tokens."""
    places = ["--model-path {target}" if has_model else "--model-path {draft}"]
    places.append(f"--speculative-algorithm {algorithm}")
    if has_model:
        places.append("--speculative-draft-model-path {draft}")
    numbers = f"--speculative-num-draft-tokens {num_tokens + 1}"
    return " ".join(["python -m sglang.launch_server", *places, *flags, numbers])
