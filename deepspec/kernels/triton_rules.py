"""The verification rules as launches of Triton kernels; see ``reference`` for what each computes.

A few launches whose grids follow from shapes alone, no waiting for the device and no work on requests one
by one, so a round can be captured in a CUDA graph; give a :class:`Workspace` then.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import triton
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.kernels import triton_close, triton_rows
from deepspec.sampling.categorical import BLOCK
from deepspec.types import Draft, TargetRows, Verdict

#: Leading bits that tell a type's values apart once they are float32, whose exponent has 8.
DTYPES = {torch.bfloat16: 16, torch.float16: 19, torch.float32: 32}
# Unfused: a product and a difference round alike in every kernel, so weights are what masses were summed of.
ENABLE_FP_FUSION = False
#: Warps of the kernels that work on blocks of the vocabulary; the others take 4.
_WIDE = 8
_BLOCKWISE = {"cut_offs", "block_stats", "residual_masses", "closing_token", "draw_rows"}
#: Tokens that the search for cut-offs takes at a time, which no result depends on.
_TILE = 2048


@dataclass(frozen=True)
class Workspace:
    """What the kernels leave for each other, and the verdict; the next round with it overwrites both.

    C cells are R * (G+1), S blocks of the vocabulary a row.

    Attributes:
        cutoffs, row_peaks, row_logs: float32 ``[C]``. row_bests: int32 ``[C]``. drawn: int64 ``[C]``.
        log_runs: float32 ``[C]``. needed: int32 ``[C]``.
        peaks, totals, row_masses: float32 ``[C*S]``. bests: int32 ``[C*S]``.
        masses: float32 ``[R*S]``. accepted, bonus: int64 ``[R]``.
    """

    cutoffs: Tensor
    row_peaks: Tensor
    row_logs: Tensor
    row_bests: Tensor
    drawn: Tensor
    log_runs: Tensor
    needed: Tensor
    peaks: Tensor
    totals: Tensor
    row_masses: Tensor
    bests: Tensor
    masses: Tensor
    accepted: Tensor
    bonus: Tensor

    @classmethod
    def allocate(
        cls, num_requests: int, num_draft: int, vocab_size: int, device: torch.device, *, block: int = BLOCK
    ) -> Workspace:
        """Room for rounds of exactly this size; nothing is filled in."""
        cells, parts = num_requests * (num_draft + 1), triton.cdiv(vocab_size, block)

        def room(count: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(count, dtype=dtype, device=device)

        return cls(
            **{name: room(cells, torch.float32) for name in ("cutoffs", "row_peaks", "row_logs", "log_runs")},
            **{name: room(cells, torch.int32) for name in ("row_bests", "needed")},
            **{name: room(cells * parts, torch.float32) for name in ("peaks", "totals", "row_masses")},
            drawn=room(cells, torch.int64),
            bests=room(cells * parts, torch.int32),
            masses=room(num_requests * parts, torch.float32),
            accepted=room(num_requests, torch.int64),
            bonus=room(num_requests, torch.int64),
        )

    def check(self, num_requests: int, num_cells: int, num_blocks: int) -> None:
        """Raise ConfigError unless the workspace was made for rounds of this size."""
        given = (len(self.accepted), len(self.drawn), len(self.peaks))
        if given != (num_requests, num_cells, num_cells * num_blocks):
            raise ConfigError(
                f"a workspace of {given[0]} requests, {given[1]} rows and {given[2]} blocks; this round has "
                f"{num_requests}, {num_cells} and {num_cells * num_blocks}: allocate one of its size"
            )


def token_rule(
    target: TargetRows,
    draft: Draft,
    lengths: Tensor,
    accept: Tensor,
    residual: Tensor,
    *,
    workspace: Workspace | None = None,
    block: int = BLOCK,
) -> Verdict:
    """``reference.token_rule`` in four launches, five where something is truncated.

    ``block`` is part of the random-stream contract; only tests use another.
    """
    launch = _Launcher(target, draft, lengths, workspace, block)
    launch.stats()
    launch.accept(accept, blockwise=False)
    launch.close(residual, blockwise=False)
    return launch.verdict()


def block_rule(
    target: TargetRows,
    draft: Draft,
    lengths: Tensor,
    accept: Tensor,
    residual: Tensor,
    *,
    workspace: Workspace | None = None,
    block: int = BLOCK,
) -> Verdict:
    """``reference.block_rule`` in six launches, seven where something is truncated."""
    launch = _Launcher(target, draft, lengths, workspace, block)
    launch.stats()
    launch.accept(accept, blockwise=True)
    row_masses = launch.workspace.row_masses
    launch.masses(launch.cells, row_masses, blockwise=True, whole_round=True)
    launch(triton_close.accept_block, launch.requests, uniforms=accept, masses=row_masses, **_strides(accept))
    launch.close(residual, blockwise=True)
    return launch.verdict()


def delta_rule(
    target: TargetRows,
    draft: Draft,
    lengths: Tensor,
    noise: Tensor,
    *,
    workspace: Workspace | None = None,
    block: int = BLOCK,
) -> Verdict:
    """``reference.delta_rule`` in three launches, four where something is truncated."""
    launch = _Launcher(target, draft, lengths, workspace, block)
    launch.stats()
    launch(triton_close.draw_rows, launch.cells, uniforms=noise, **_strides(noise))
    launch(triton_close.match_draws, launch.requests)
    return launch.verdict()


def num_warps(kernel: Any) -> int:
    """Warps that a program of the kernel runs on."""
    return _WIDE if kernel.__name__ in _BLOCKWISE else 4


def _strides(uniforms: Tensor) -> dict[str, int]:
    """Strides of ``[R, G]``, ``[R, 2]`` or ``[R, G+1, 2]``, as the kernels call them."""
    request, *others = uniforms.stride()
    return {"request_stride": request, "step_stride": others[0], "level_stride": others[-1]}


class _Launcher:
    """One round's arguments by name; a kernel takes those that its signature names."""

    def __init__(
        self, target: TargetRows, draft: Draft, lengths: Tensor, workspace: Workspace | None, block: int
    ) -> None:
        rows, stored = (
            contiguous_rows(target.logits),
            (None if draft.logits is None else contiguous_rows(draft.logits)),
        )
        num_rows, vocab_size = rows.shape
        self.requests, num_draft = draft.tokens.shape
        self.cells, num_blocks = self.requests * (num_draft + 1), triton.cdiv(vocab_size, block)
        self.blocks, self.bits = num_blocks, DTYPES[rows.dtype]
        if self.requests and not num_rows:
            raise ConfigError(f"{self.requests} requests with no target rows; each needs its length plus one")
        self.workspace = workspace or Workspace.allocate(
            self.requests, num_draft, vocab_size, rows.device, block=block
        )
        self.workspace.check(self.requests, self.cells, num_blocks)
        sampling = target.sampling
        self.device = rows.device
        self.values: dict[str, Any] = {
            **{field.name: getattr(self.workspace, field.name) for field in fields(Workspace)},
            "logits": rows,
            "row_stride": rows.stride(0),
            "starts": target.starts.contiguous(),
            "lengths": lengths.contiguous(),
            "temperature": sampling.temperature.contiguous(),
            "draft": rows if stored is None else stored,
            "draft_stride": 0 if stored is None else stored.stride(0),
            "draft_step_stride": 0 if stored is None else stored.stride(1),
            "drafted": draft.tokens.contiguous(),
            "log_sum_exp": draft.log_sum_exp.contiguous(),
            "log_q": draft.log_q.contiguous(),
            "num_rows": num_rows,
            "num_steps": num_draft + 1,
            "num_blocks": num_blocks,
            "vocab_size": vocab_size,
            "truncated": not (sampling.top_k is None and sampling.top_p is None and sampling.min_p is None),
            "one_hot": stored is None,
            "block": block,
            # A scan or a tensor of one element is a case of its own to compilers; two are none.
            "steps": max(2, triton.next_power_of_2(num_draft + 1)),
            "parts": max(2, triton.next_power_of_2(num_blocks)),
        }
        self.sampling = sampling

    def __call__(self, kernel: Any, programs: int, **more: Any) -> None:
        """Launch a kernel on ``programs`` programs; ``more`` holds what differs between launches."""
        given = self.values | more
        chosen = {name: given[name] for name in kernel.arg_names}
        if programs:
            with torch.accelerator.device_index(self.device.index):
                kernel[(programs,)](**chosen, num_warps=num_warps(kernel), enable_fp_fusion=ENABLE_FP_FUSION)

    def stats(self) -> None:
        """Cut-offs where anything is truncated, and every block's largest value and mass."""
        if self.values["truncated"]:
            unused = self.sampling.temperature
            given = {name: getattr(self.sampling, name) for name in ("top_k", "top_p", "min_p")}
            more = {name: unused if value is None else value.contiguous() for name, value in given.items()}
            has = {f"has_{name}": value is not None for name, value in given.items()}
            self(triton_rows.cut_offs, self.cells, bits=self.bits, tile=_TILE, **more, **has)
        self(triton_rows.block_stats, self.cells * self.blocks)

    def accept(self, uniforms: Tensor, *, blockwise: bool) -> None:
        """Every row's log-sum-exp, and the accepted count as far as it is known without residual masses."""
        more = {"uniforms": uniforms, "blockwise": blockwise, **_strides(uniforms)}
        self(triton_close.accept_drafts, self.requests, **more)

    def masses(self, rows: int, masses: Tensor, *, blockwise: bool, whole_round: bool) -> None:
        """Residual masses of each block of ``rows`` rows: one a request, or all of the round."""
        more = {"masses": masses, "blockwise": blockwise, "whole_round": whole_round}
        self(triton_close.residual_masses, rows * self.blocks, **more)

    def close(self, residual: Tensor, *, blockwise: bool) -> None:
        """The closing token of every request, from the rows at ``accepted``."""
        self.masses(self.requests, self.workspace.masses, blockwise=blockwise, whole_round=False)
        more = {"uniforms": residual, "blockwise": blockwise, **_strides(residual)}
        self(triton_close.closing_token, self.requests, **more)

    def verdict(self) -> Verdict:
        """What the kernels left."""
        return Verdict(accepted=self.workspace.accepted, bonus=self.workspace.bonus)


def contiguous_rows(logits: Tensor) -> Tensor:
    """Logits that the kernels can read, each row contiguous."""
    if logits.dtype not in DTYPES:
        known = ", ".join(str(dtype) for dtype in DTYPES)
        raise ConfigError(
            f"logits are {logits.dtype}; the Triton kernels read {known}: convert them, or set "
            "DEEPSPEC_KERNELS=reference"
        )
    return logits if logits.stride(-1) == 1 else logits.contiguous()
