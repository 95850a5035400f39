"""What a round's input must be; looked at in debug mode only, because looking waits for the device.

The kernels stay inside their arrays whatever they are given; what they then decide means nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.types import Draft, TargetRows, Verdict

_Rule = Callable[..., Verdict]


def checked(rule: _Rule) -> _Rule:
    """The rule, after :func:`check_round` of its input."""

    def run(target: TargetRows, draft: Draft, lengths: Tensor, *uniforms: Tensor) -> Verdict:
        check_round(target, draft, lengths, *uniforms)
        return rule(target, draft, lengths, *uniforms)

    return run


def check_round(target: TargetRows, draft: Draft, lengths: Tensor, *uniforms: Tensor) -> None:
    """Raise ConfigError on the first thing that is wrong with a round.

    That is: tensors on several devices, shapes that do not fit, lengths outside 0..G or past the packing, ids
    outside the vocabulary, NaN or no finite value in a row that is read.
    """
    _check_devices(target, draft, lengths, uniforms)
    _check_shapes(target, draft, lengths)
    _check_packing(target, draft, lengths)
    num_draft = draft.tokens.shape[1]
    steps = torch.arange(num_draft + 1, device=lengths.device)
    used = steps <= lengths[:, None]
    vocab_size = target.logits.shape[1]
    outside = used[:, 1:] & ((draft.tokens < 0) | (draft.tokens >= vocab_size))
    if (found := _first(outside)) is not None:
        r, k = found
        raise ConfigError(
            f"request {r} drafted token {int(draft.tokens[r, k])} at position {k}; "
            f"allowed are 0..{vocab_size - 1}"
        )
    rows = (target.starts[:, None] + steps).clamp(max=len(target.logits) - 1)
    _check_rows("target", target.logits[rows.flatten()].unflatten(0, rows.shape), used)
    if draft.logits is not None:
        _check_rows("draft", draft.logits, used[:, 1:])


def _check_devices(target: TargetRows, draft: Draft, lengths: Tensor, uniforms: tuple[Tensor, ...]) -> None:
    tensors = {
        "target.logits": target.logits,
        "target.starts": target.starts,
        "target.sampling": target.sampling.temperature,
        "draft.tokens": draft.tokens,
        "draft.logits": draft.logits,
        "lengths": lengths,
        **{f"uniforms[{i}]": tensor for i, tensor in enumerate(uniforms)},
    }
    devices = {name: str(tensor.device) for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ConfigError(f"a round has tensors on several devices: {listed}; move them to one")


def _check_shapes(target: TargetRows, draft: Draft, lengths: Tensor) -> None:
    num_requests, num_draft = draft.tokens.shape
    vocab_size = target.logits.shape[1]
    expected = {
        "lengths": (lengths, (num_requests,)),
        "target.starts": (target.starts, (num_requests,)),
        "target.sampling": (target.sampling.temperature, (num_requests,)),
        "draft.log_q": (draft.log_q, (num_requests, num_draft)),
        "draft.log_sum_exp": (draft.log_sum_exp, (num_requests, num_draft)),
        "draft.logits": (draft.logits, (num_requests, num_draft, vocab_size)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ConfigError(
                f"{name} is {list(tensor.shape)}; draft.tokens and target.logits ask for {list(shape)}"
            )


def _check_packing(target: TargetRows, draft: Draft, lengths: Tensor) -> None:
    num_draft, num_rows = draft.tokens.shape[1], len(target.logits)
    if (found := _first((lengths < 0) | (lengths > num_draft))) is not None:
        [r] = found
        raise ConfigError(
            f"request {r} has length {int(lengths[r])}; allowed are 0..{num_draft}, what was drafted"
        )
    ends = torch.cat([target.starts[1:], target.starts.new_tensor([num_rows])])
    if (found := _first((target.starts < 0) | (target.starts + lengths >= ends))) is not None:
        [r] = found
        raise ConfigError(
            f"request {r} has length {int(lengths[r])} and rows {int(target.starts[r])}..{int(ends[r]) - 1} "
            f"of {num_rows}; it needs one row more than its length"
        )


def _check_rows(name: str, rows: Tensor, used: Tensor) -> None:
    """``rows [R, K, V]`` that are used ``[R, K]`` hold no NaN and something finite."""
    for what, wrong in (("NaN", rows.isnan().any(-1)), ("nothing finite", ~rows.isfinite().any(-1))):
        if (found := _first(wrong & used)) is not None:
            r, k = found
            raise ConfigError(
                f"the {name} logits of request {r}, row {k}, hold {what}; look at what computed them"
            )


def _first(wrong: Tensor) -> list[int] | None:
    """Where the first True is."""
    places = wrong.nonzero()
    return places[0].tolist() if len(places) else None
