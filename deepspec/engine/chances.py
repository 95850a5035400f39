"""The analytic chance that a drafted position is accepted, for traces: no coin flip in it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from deepspec.sampling.process import process_rows, scale
from deepspec.types import Draft, TargetRows


def acceptance_chances(target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
    """Sum over v of min(p_k(v), q_k(v)) given the tokens before k: ``[R, G]``, NaN past ``lengths``.

    It is what the token rule accepts with, before x_k is known. One position at a time: ``[R, V]`` is held.
    """
    last = target.logits.shape[0] - 1
    columns = []
    for k in range(draft.tokens.shape[1]):
        rows = target.logits[(target.starts + k).clamp(max=last)]
        p = process_rows(rows, target.sampling).softmax(dim=-1)
        if draft.logits is None:
            q = one_hot(draft.tokens[:, k], p.shape[-1]).to(p.dtype)
        else:
            drafted = scale(draft.logits[:, k], target.sampling).to(p.dtype)
            q = (drafted - draft.log_sum_exp[:, k, None].to(p.dtype)).exp_()
        columns.append(torch.minimum(p, q).sum(dim=-1).masked_fill(lengths <= k, float("nan")))
    return torch.stack(columns, dim=1)
