"""Mutants of the block rule, of the scheduler, of the loss and of the Triton kernels; see ``mutations``."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

KERNELS = ("tests/kernels/test_triton_rules.py",)
BLOCK_LAW = ("tests/kernels/test_reference.py", "tests/exact/test_laws.py")
LOSS = ("tests/kernels/test_loss.py",)
OBJECTIVE = ("tests/train/test_objective.py",)
SCHEDULE = ("tests/kernels/test_schedule.py",)

KERNEL_MUTANTS = (
    Mutant(
        "block rule stops at the first failed test",
        "deepspec/kernels/reference.py",
        "accepted = torch.nn.functional.pad(passes * steps, (1, 0)).amax(dim=1)",
        "accepted = passes.long().cumprod(dim=1).sum(dim=1)",
        "a later prefix that passes is kept whatever failed before it; stopping early loses the target's law",
        BLOCK_LAW,
    ),
    Mutant(
        "residual mass of the wrong position",
        "deepspec/kernels/reference.py",
        "following = torch.nn.functional.pad(mass[:, 1:], (0, 1))",
        "following = mass",
        "the test of i tokens asks what is left at position i + 1",
        BLOCK_LAW,
    ),
    Mutant(
        "P above one",
        "deepspec/kernels/reference.py",
        "columns.append((columns[-1] * ratio).clamp(max=1.0))",
        "columns.append(columns[-1] * ratio)",
        "credit of likely tokens would pay for later ones without bound",
        BLOCK_LAW,
    ),
    Mutant(
        "kernel accepts what p never gives",
        "deepspec/kernels/triton_close.py",
        "kept = uniform * tl.exp(drawn_with) < tl.exp(log_p)",
        "kept = uniform * tl.exp(drawn_with) <= tl.exp(log_p)",
        "a uniform of 0 then keeps a token of no probability",
        KERNELS,
    ),
    Mutant(
        "kernel chooses block and token by one uniform",
        "deepspec/kernels/triton_close.py",
        """        weights = weight_of(values, peak, inverse)
    inside = pick(weights, tl.load(noise + level_stride), index)""",
        """        weights = weight_of(values, peak, inverse)
    inside = pick(weights, tl.load(noise), index)""",
        "the token inside a block depends on which block it is",
        KERNELS,
    ),
    Mutant(
        "kernel reads the next position's uniform",
        "deepspec/kernels/triton_close.py",
        "noise = uniforms + request * request_stride + (step - 1) * step_stride",
        "noise = uniforms + request * request_stride + step * step_stride",
        "a prefix is judged by the uniform of another",
        KERNELS,
    ),
    Mutant(
        "kernel cuts ties",
        "deepspec/kernels/triton_rows.py",
        'values = tl.where(values >= tl.load(cutoffs + cell), values, float("-inf"))',
        'values = tl.where(values > tl.load(cutoffs + cell), values, float("-inf"))',
        "the token at the cut-off itself stays",
        KERNELS,
    ),
    Mutant(
        "kernel forgets the temperature",
        "deepspec/kernels/triton_rows.py",
        "    return value, 1.0 / value, greedy",
        "    return value, 1.0 / 1.0, greedy",
        "p is that of temperature 1",
        KERNELS,
    ),
    Mutant(
        "scheduler goes on where nothing is gained",
        "deepspec/kernels/schedule.py",
        "pays = (throughput[1:] > throughput[:-1]) & (taken > 0)",
        "pays = (throughput[1:] >= throughput[:-1]) & (taken > 0)",
        "the walk ends at the first throughput that does not exceed the best",
        SCHEDULE,
    ),
    Mutant(
        "scheduler reads the speed of one token fewer",
        "deepspec/kernels/schedule.py",
        "window = steps_per_second[num + prefill_tokens - 1 :][: pairs + 1]",
        "window = steps_per_second[num + prefill_tokens - 2 :][: pairs + 1]",
        "every step has a token more than it is thought to have",
        SCHEDULE,
    ),
    Mutant(
        "distance without the softmax's sum",
        "deepspec/kernels/loss_reference.py",
        " - by.distance * found.slope",
        "",
        "probabilities sum to 1, so no logit's derivative is its own probability's alone",
        LOSS,
    ),
    Mutant(
        "soft-cap of slope one",
        "deepspec/kernels/loss_reference.py",
        "tanh[rows] = gradient.addcmul_(gradient, torch.mul(tanh[rows], tanh[rows], out=p), value=-1)",
        "tanh[rows] = gradient",
        "a capped logit moves less than what it caps",
        OBJECTIVE,
    ),
    Mutant(
        "terms of others unheard",
        "deepspec/train/fused_rows.py",
        "self._chunk, self._dense.grad",
        "self._chunk, None",
        "a term that reads logits is measured and never learnt",
        OBJECTIVE,
    ),
    Mutant(
        "loss kernel takes a missing label for the first token",
        "deepspec/kernels/triton_loss.py",
        'tl.where(label >= 0, picked, float("-inf"))',
        "picked",
        "a label that the draft vocabulary lacks has no probability there",
        LOSS,
    ),
)
