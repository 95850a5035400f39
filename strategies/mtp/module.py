"""A multi-token prediction module: h' = W [norm(embedding of next token) ; norm(h)], then a decoder layer.

DeepSeek-V3 (2412.19437, section 2.2; its released weights have the embedding first, as here).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from deepspec.errors import ConfigError
from deepspec.interfaces import TargetInfo
from deepspec.nn import DecoderLayer, RMSNorm, pass_through_


class MTPModule(nn.Module):
    """One module; embedding and LM head are the target's."""

    def __init__(self, info: TargetInfo, layer: DecoderLayer) -> None:
        super().__init__()
        size = info.hidden_size
        self.info = info
        self.token_layernorm, self.hidden_layernorm = _norm(info), _norm(info)
        self.input_proj = nn.Linear(2 * size, size, bias=False)
        pass_through_(self.input_proj.weight)
        self.layers = nn.ModuleList([layer])
        self.layer = (layer,)
        self.norm = _norm(info)

    def enter(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """h' ``[..., H]`` of tokens ``[...]`` and states ``[..., H]``, and what attention reads of it."""
        embedded = embedding(tokens, self.info.embedding).to(hidden.dtype) * self.info.embedding_scale
        both = torch.cat([self.token_layernorm(embedded), self.hidden_layernorm(hidden)], dim=-1)
        x = self.input_proj(both)
        return x, self.layer[0].input_layernorm(x)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a released module's weights; raises ConfigError when a shape is another."""
        for name, own in self.state_dict().items():
            if weights[name].shape != own.shape:
                raise ConfigError(
                    f"drafter.native_weights: {name} has shape {list(weights[name].shape)}, and this target "
                    f"needs {list(own.shape)}; give the weights that were released with the target"
                )
            own.copy_(weights[name])
        for name, norm in self.named_modules():
            if isinstance(norm, RMSNorm):
                norm.multiply_by_(weights[f"{name}.weight"])


def _norm(info: TargetInfo) -> RMSNorm:
    return RMSNorm(info.hidden_size, info.rms_norm_eps, unit_offset=info.traits.unit_offset)
