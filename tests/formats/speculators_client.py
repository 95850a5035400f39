"""Loads exports with the real ``speculators`` and writes the draft logits that it computes.

Run by ``test_speculators.py`` with the Python of an environment that has it: ``CLIENT WORK_FOLDER``, where
``inputs.safetensors`` has tokens and features, and each folder beside it is an export.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel, SpeculatorModelConfig

CONTEXT, G = 9, 4


def block_logits(model, tokens, features):
    """A DFlash's or DSpark's one block behind the context; the head's own code on the forced tokens."""
    mask = torch.zeros(1, len(tokens), dtype=torch.bool)
    mask[0, CONTEXT] = True
    last = torch.zeros(1, len(tokens), model.hidden_size)
    document = torch.zeros(1, len(tokens), dtype=torch.long)
    hidden, logits, *_ = model._backbone_forward(
        features[None], tokens[None], mask, last, document, max_anchors=1
    )
    if getattr(model, "markov_head", None) is not None:
        previous = tokens[None, CONTEXT : CONTEXT + G]
        logits = logits + model.markov_head.block_bias(prev_token_ids=previous, hidden_states=hidden)
    return logits[0, -G:]


def chain_logits(model, tokens, features):
    """An Eagle 3's steps from the last row of the context, its inputs the true tokens."""
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output[0, CONTEXT - 1]))
    document = torch.zeros(1, len(tokens) - 1, dtype=torch.long)
    model(features[None, :-1], tokens[None, 1:], document, ttt_steps=G)
    return torch.stack(seen)


def recycled_logits(model, tokens, features):
    """An MTP module's steps from the last row of the context, its inputs the true tokens."""
    logits, *_ = model(tokens[None], features[None])
    return torch.stack([step[0, CONTEXT - 1] for step in logits])


COMPUTE = {"eagle3": chain_logits, "mtp": recycled_logits}


def main(work: Path) -> None:
    given = load_file(work / "inputs.safetensors")
    found = {}
    for folder in sorted(path for path in work.iterdir() if (path / "config.json").is_file()):
        config = SpeculatorModelConfig.from_pretrained(folder)
        config.transformer_layer_config._attn_implementation = "eager"
        model = SpeculatorModel.from_pretrained(folder, config=config).float().eval()
        count = len(model.target_layer_ids)
        compute = COMPUTE.get(config.speculators_model_type, block_logits)
        with torch.no_grad():
            found[folder.name] = compute(model, given["tokens"], given[f"features_{count}"]).contiguous()
    save_file(found, work / "outputs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
