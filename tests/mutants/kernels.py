"""Mutants of the Triton kernels; see ``mutations``."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

KERNELS = ("tests/kernels/test_triton.py",)

KERNEL_MUTANTS = (
    Mutant(
        "kernel accepts at equality",
        "deepspec/kernels/triton_close.py",
        "kept = uniform * tl.exp(drawn_with) < tl.exp(log_p)",
        "kept = uniform * tl.exp(drawn_with) <= tl.exp(log_p)",
        "a uniform of 0 accepts a token that the target never gives",
        KERNELS,
    ),
    Mutant(
        "kernel draws zero mass",
        "deepspec/kernels/triton_rows.py",
        "(cumulative > point) & (weights > 0), index, last",
        "(cumulative >= point), index, last",
        "a uniform of 0, or one on a step, gives a token without mass",
        KERNELS,
    ),
    Mutant(
        "kernel shares a uniform between the levels",
        "deepspec/kernels/triton_close.py",
        "inside = pick(weights, tl.load(noise + level_stride), index)",
        "inside = pick(weights, tl.load(noise), index)",
        "the place inside a block of the vocabulary then depends on which block it is",
        KERNELS,
    ),
    Mutant(
        "kernel upcasts too late",
        "deepspec/kernels/triton_close.py",
        "q = tl.exp(tl.div_rn(stored, temperature)",
        "q = tl.exp(tl.div_rn(stored, temperature).to(tl.float16).to(tl.float32)",
        "q is not what a float32 sampler drew from",
        KERNELS,
    ),
    Mutant(
        "kernel's residual of the row before",
        "deepspec/kernels/triton_close.py",
        "request * draft_stride + step * draft_step_stride + tokens",
        "request * draft_stride + tl.maximum(step - 1, 0) * draft_step_stride + tokens",
        "the q that is subtracted is not the one that the refused token came from",
        KERNELS,
    ),
    Mutant(
        "kernel's block rule forgets to hold P at 1",
        "deepspec/kernels/triton_close.py",
        "log_run = run - tl.maximum(highest, 0.0)",
        "log_run = tl.minimum(run, 0.0)",
        "luck of early tokens is saved for later ones, and more is accepted than the target gives",
        KERNELS,
    ),
    Mutant(
        "kernel's block rule by P alone",
        "deepspec/kernels/triton_close.py",
        "sure = passed & ((log_run == 0) | (step + 1 == length))",
        "sure = passed",
        "h is P at the end only; before it the mass of the next residual counts",
        KERNELS,
    ),
    Mutant(
        "kernel cuts ties",
        "deepspec/kernels/triton_rows.py",
        "tl.where(values >= tl.load(cutoffs + cell)",
        "tl.where(values > tl.load(cutoffs + cell)",
        "the cut-off itself, and what ties with it, is dropped",
        KERNELS,
    ),
    Mutant(
        "kernel's top-p of the whole row",
        "deepspec/kernels/triton_rows.py",
        "mass = share * measure(row, key, peak",
        "mass = share * measure(row, key * 0, peak",
        "the nucleus is then taken of tokens that top-k has removed",
        KERNELS,
    ),
    Mutant(
        "kernel trusts a length",
        "deepspec/kernels/triton_rows.py",
        "tl.minimum(tl.maximum(tl.load(lengths + request), 0), num_steps - 1)",
        "tl.load(lengths + request)",
        "a wrong length leads outside the arrays",
        KERNELS,
    ),
)
