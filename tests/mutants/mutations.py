"""Small mistakes that somebody could make in the source, each with the tests that must notice.

An entry that no longer applies is stale: mend its text when the source changes, or replace it when the line
it broke has gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

TARGET = ("tests/target/test_packed.py",)
PROCESS = ("tests/sampling/test_process.py",)
SAMPLER = ("tests/sampling/test_sampler.py",)
STREAMS = ("tests/sampling/test_streams.py",)
RULES = ("tests/kernels/test_reference.py",)
KERNELS = ("tests/kernels/test_triton_rules.py",)
BLOCK_LAW = ("tests/kernels/test_reference.py", "tests/exact/test_laws.py")
POLICIES = ("tests/policies/test_policies.py",)
NOISE = ("tests/engine/test_noise.py",)
DRAFT = ("tests/engine/test_draft.py",)
PROPOSERS = ("tests/engine/test_proposers.py",)
ENGINE = ("tests/engine/test_engine.py",)
LAW = ("tests/exact_statistics/test_chi_square.py",)
OBJECTIVE = ("tests/train/test_objective.py",)
HEADS = ("tests/heads/test_heads.py",)
DRAFTER = ("tests/strategies/test_dflash.py",)
DRAFT_MODEL = ("tests/strategies/test_draft_model.py",)
UNROLLED = ("tests/strategies/test_eagle3.py", "tests/strategies/test_mtp.py")
DECODER = ("tests/target/test_decoder.py",)


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: what it is called in the table. file: what it changes, from the repository's root.
        old, new: the text, which occurs exactly once, and what stands in its place.
        wrong: why the result is wrong.
        tests: test files of which at least one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    wrong: str
    tests: tuple[str, ...]

    def stale(self, root: Path = ROOT) -> str | None:
        """Why the entry does not fit the sources any more, or None."""
        path = root / self.file
        count = path.read_text().count(self.old) if path.is_file() else 0
        if count != 1:
            return f"{self.name}: {self.old!r} occurs {count} times in {self.file}, not once"
        missing = [test for test in self.tests if not (root / test).is_file()]
        return f"{self.name}: no such test file: {', '.join(missing)}" if missing else None


MUTANTS = (
    Mutant(
        "zero mass drawn",
        "deepspec/sampling/categorical.py",
        "torch.searchsorted(cumulative, point, right=True)",
        "torch.searchsorted(cumulative, point, right=False)",
        "a uniform of 0, or one on a step, gives a token without mass",
        RULES,
    ),
    Mutant(
        "one uniform for both levels",
        "deepspec/sampling/categorical.py",
        "return chosen * BLOCK + _invert(inside, second)",
        "return chosen * BLOCK + _invert(inside, first)",
        "the place inside a block of the vocabulary then depends on which block it is",
        RULES,
    ),
    Mutant(
        "uniform of one",
        "deepspec/sampling/categorical.py",
        "uniforms.to(dtype).clamp(max=1 - torch.finfo(dtype).eps / 2)",
        "uniforms.to(dtype)",
        "a 53-bit uniform may round to 1 in float32, and then refuses p = q",
        RULES,
    ),
    Mutant(
        "no upcast",
        "deepspec/sampling/process.py",
        "values = logits if logits.dtype == torch.float64 else logits.float()",
        "values = logits",
        "bf16 rows are sampled in bf16: q is not what a float32 verifier recomputes",
        PROCESS,
    ),
    Mutant(
        "ties of top-k cut",
        "deepspec/sampling/process.py",
        "kept &= ordered >= ordered.gather(-1, top_k[:, None] - 1)",
        "kept &= ordered > ordered.gather(-1, top_k[:, None] - 1)",
        "tokens tied with the cut-off are dropped",
        PROCESS,
    ),
    Mutant(
        "top-p before top-k",
        "deepspec/sampling/process.py",
        "mass = ordered.masked_fill(~kept, NEG_INF).softmax(dim=-1)",
        "mass = ordered.softmax(dim=-1)",
        "the nucleus is then taken of tokens that top-k has removed",
        PROCESS,
    ),
    Mutant(
        "q before temperature",
        "deepspec/sampling/sampler.py",
        "log_q = values.gather(-1, tokens[:, None])[:, 0] - log_sum_exp",
        "log_q = logits.log_softmax(dim=-1).gather(-1, tokens[:, None])[:, 0]",
        "the recorded q is not the q that was sampled",
        SAMPLER,
    ),
    Mutant(
        "nine rounds of Philox",
        "deepspec/sampling/streams.py",
        "np.outer(np.arange(10,",
        "np.outer(np.arange(9,",
        "another generator than the published one",
        STREAMS,
    ),
    Mutant(
        "half a seed",
        "deepspec/sampling/streams.py",
        "halves = np.stack([key & _MASK, key >> _SHIFT], axis=-1)",
        "halves = np.stack([key & _MASK, key & _MASK], axis=-1)",
        "requests whose seeds differ in the upper 32 bits alone share all their noise",
        STREAMS,
    ),
    Mutant(
        "residual stream is accept's",
        "deepspec/sampling/streams.py",
        "RESIDUAL = 2",
        "RESIDUAL = 1",
        "the noise that refuses a token also chooses its replacement",
        STREAMS,
    ),
    Mutant(
        "accept shares draft's noise",
        "deepspec/engine/noise.py",
        "[(0, k, Stream.ACCEPT) for k in steps]",
        "[(0, k, Stream.DRAFT) for k in steps]",
        "a token is judged by the noise that drew it",
        NOISE,
    ),
    Mutant(
        "one uniform a block",
        "deepspec/engine/noise.py",
        "[(0, k, Stream.DRAFT) for k in steps]",
        "[(0, 0, Stream.DRAFT) for k in steps]",
        "the tokens of a block are drawn with the same noise",
        NOISE,
    ),
    Mutant(
        "delta keyed by round",
        "deepspec/engine/noise.py",
        "(k + 1, 0, Stream.DELTA)",
        "(1, k, Stream.DELTA)",
        "a position's noise depends on where its round began: no longer plain decoding's",
        ENGINE,
    ),
    Mutant(
        "accept at equality",
        "deepspec/kernels/reference.py",
        "* log_q.exp() < log_p.exp()",
        "* log_q.exp() <= log_p.exp()",
        "a uniform of 0 accepts a token that the target never gives",
        RULES,
    ),
    Mutant(
        "residual is p",
        "deepspec/kernels/reference.py",
        "left = (p - q).clamp_(min=0.0)",
        "left = p - 0 * q",
        "a refused token can be drawn again: its mass counts twice",
        RULES,
    ),
    Mutant(
        "residual of the first position",
        "deepspec/kernels/reference.py",
        "index = accepted.clamp(max=last)",
        "index = torch.zeros_like(accepted)",
        "the q that is subtracted is not the one that the refused token came from",
        RULES,
    ),
    Mutant(
        "bonus of the first row",
        "deepspec/kernels/reference.py",
        "final = rows.gather(1, accepted[:, None])[:, 0]",
        "final = rows[:, 0]",
        "the closing token comes from the row of another position",
        LAW,
    ),
    Mutant(
        "accept past a rejection",
        "deepspec/kernels/reference.py",
        "(kept & inside).to(torch.int64).cumprod(dim=1).sum(dim=1)",
        "(kept & inside).to(torch.int64).sum(dim=1)",
        "positions after the first rejection count as accepted",
        RULES,
    ),
    Mutant(
        "a row to its neighbour",
        "deepspec/kernels/reference.py",
        "torch.searchsorted(target.starts, every_row, right=True) - 1",
        "torch.searchsorted(target.starts, every_row, right=False).sub(1).clamp(min=0)",
        "a request's first row is processed with the parameters of the request before it",
        RULES,
    ),
    Mutant(
        "delta one late",
        "deepspec/kernels/reference.py",
        "drawn[:, :num_draft] == draft.tokens",
        "drawn[:, 1:] == draft.tokens",
        "a draft is compared with the draw of the next position",
        ENGINE,
    ),
    Mutant(
        "threshold of survival",
        "deepspec/policies/threshold.py",
        "conditional = where(before > 0, survival / before, 0.0)",
        "conditional = survival",
        "the threshold is one of each conditional confidence, not of their product",
        POLICIES,
    ),
    Mutant(
        "threshold looks ahead",
        "deepspec/policies/threshold.py",
        ".to(drafted.dtype).cumprod(dim=1).sum(dim=1)",
        ".to(drafted.dtype).sum(dim=1)",
        "confidences past the admitted length decide that length: the output is biased",
        POLICIES,
    ),
    Mutant(
        "Markov step forgets",
        "deepspec/heads/markov.py",
        "return self.block(previous, hidden), None",
        "return self.block(previous * 0, hidden), None",
        "decoding then computes other logits than training",
        DRAFTER,
    ),
    Mutant(
        "RNN head forgets",
        "deepspec/heads/rnn.py",
        "return output.tanh(), gate * state + (1 - gate) * candidate.tanh()",
        "return output.tanh(), (1 - gate) * candidate.tanh()",
        "the correction remembers one token where it should remember the block's",
        HEADS,
    ),
    Mutant(
        "gate in the embedding's place",
        "deepspec/heads/gated.py",
        "self.result(gate * embedded, hidden, embedded)",
        "self.result(gate, hidden, embedded)",
        "the correction is no longer one of the previous token's",
        HEADS,
    ),
    Mutant(
        "head sees the anchor only",
        "deepspec/engine/draft.py",
        "head.step(previous, hidden, memory)",
        "head.step(anchors.tokens, hidden, memory)",
        "decoding then computes other logits than training",
        DRAFT,
    ),
    Mutant(
        "own-token confidence",
        "deepspec/engine/draft.py",
        "(scale(logits, sampling).amax(dim=-1) - drawn.log_sum_exp).exp()",
        "drawn.log_q.exp()",
        "a length that depends on the drawn token by its own probability biases the output",
        DRAFT,
    ),
    Mutant(
        "drafter misses what was accepted",
        "deepspec/engine/engine.py",
        "kept = [1 + accepted for accepted in",
        "kept = [1 for accepted in",
        "the drafter's state has holes where tokens were accepted",
        DRAFT,
    ),
    Mutant(
        "first token's noise used twice",
        "deepspec/engine/loop.py",
        "positions = [r.prompt_length - 1 for r in requests]",
        "positions = [r.prompt_length for r in requests]",
        "the token that closes the prompt and the next one share their noise",
        LAW,
    ),
    Mutant(
        "prompt read at its start",
        "deepspec/engine/loop.py",
        "wanted.append(total - 1)",
        "wanted.append(total - chunk.count)",
        "the first token is drawn after the first token of the last chunk",
        LAW,
    ),
    Mutant(
        "stop token left out",
        "deepspec/engine/request.py",
        "taken = taken[: stop + 1]",
        "taken = taken[:stop]",
        "a text loses its end token",
        ENGINE,
    ),
    Mutant(
        "one token too many",
        "deepspec/engine/request.py",
        "room = self.params.max_tokens - (len(self.tokens) - self.prompt_length)",
        "room = self.params.max_tokens - (len(self.tokens) - self.prompt_length) + 1",
        "an output is longer than it may be",
        ENGINE,
    ),
    Mutant(
        "weights decay one early",
        "deepspec/train/position_weights.py",
        "torch.exp(-positions / self.decay)",
        "torch.exp(-(positions + 1) / self.decay)",
        "the first position weighs 1",
        OBJECTIVE,
    ),
    Mutant(
        "survival of earlier positions",
        "deepspec/train/position_weights.py",
        ".flip(1).cumsum(dim=1).flip(1)",
        ".cumsum(dim=1)",
        "a position weighs what comes before it, not what hangs on it",
        OBJECTIVE,
    ),
    Mutant(
        "likelihood of the larger",
        "deepspec/train/terms.py",
        "torch.minimum(rows.log_draft",
        "torch.maximum(rows.log_draft",
        "acceptance is the overlap of draft and target",
        OBJECTIVE,
    ),
    Mutant(
        "target one position late",
        "deepspec/train/objective.py",
        "anchors.columns[blocks] + offsets]",
        "anchors.columns[blocks] + offsets + 1]",
        "the drafter learns the target's law of the next position",
        OBJECTIVE,
    ),
    Mutant(
        "acceptance of twice the distance",
        "deepspec/train/terms.py",
        "(1 - self.distance.detach() / 2)",
        "(1 - self.distance.detach())",
        "L1 is twice the total variation",
        OBJECTIVE,
    ),
    Mutant(
        "slots one position late",
        "deepspec/nn/slots.py",
        "rows * self.max_positions + positions, values",
        "rows * self.max_positions + (positions + 1) % self.max_positions, values",
        "the drafter reads a slot that holds another position",
        DRAFTER,
    ),
    Mutant(
        "KV rows one position late",
        "deepspec/target/packed.py",
        "offsets + np.arange(ends[-1])",
        "offsets + np.arange(ends[-1]) + 1",
        "keys lie one position behind where attention looks for them",
        TARGET,
    ),
    Mutant(
        "a proposal one token long",
        "deepspec/engine/draft.py",
        ">= lengths[:, None]",
        "> lengths[:, None]",
        "what lies past a proposal is taken for a token of it",
        PROPOSERS,
    ),
    Mutant(
        "padding as proposed",
        "deepspec/engine/draft.py",
        "Draft(torch.where(known, tokens, 0), logits=None",
        "Draft(tokens, logits=None",
        "on padded rows the target is fed ids that it does not have",
        PROPOSERS,
    ),
    Mutant(
        "proposals taken on trust",
        "deepspec/engine/loop.py",
        "check_lengths(self.parts, table[:, 3].tolist())",
        "check_lengths(self.parts, [])",
        "a drafter that proposes what is no token is not told",
        PROPOSERS,
    ),
    Mutant(
        "original layout drafts from the anchor's slot",
        "strategies/dflash/drafter.py",
        "self.norm(x[:, self.num_idle :])",
        "self.norm(x[:, : x.shape[1] - self.num_idle])",
        "decoding reads the slots before those that are trained",
        DRAFTER,
    ),
    Mutant(
        "drafted tokens one position late",
        "strategies/draft_model/drafter.py",
        "span.start + k, 1)",
        "span.start + k + 1, 1)",
        "the draft model sees a gap behind the anchor",
        DRAFT_MODEL,
    ),
    Mutant(
        "committed text forgotten",
        "strategies/draft_model/drafter.py",
        "self._pending = ((extension.tokens, extension.spans),)",
        "self._pending = ()",
        "keys of refused tokens stay where committed ones belong",
        DRAFT_MODEL,
    ),
    Mutant(
        "a longer vocabulary is drafted from",
        "strategies/draft_model/drafter.py",
        "self.decoder.lm_head[: self.context.target.vocab_size]",
        "self.decoder.lm_head",
        "ids are drafted that the target does not have",
        DRAFT_MODEL,
    ),
    Mutant(
        "the first step's key twice",
        "deepspec/nn/unrolled.py",
        "if not is_first:",
        "if True:",
        "training weighs the anchor's own row twice, decoding once",
        UNROLLED,
    ),
    Mutant(
        "a row ahead",
        "deepspec/nn/ragged.py",
        "device=own.device) <= own",
        "device=own.device) <= own + 1",
        "committed rows attend to what was drafted behind them and refused",
        UNROLLED,
    ),
    Mutant(
        "the slot's last request",
        "strategies/mtp/cascade.py",
        "carried[extension.slots].masked_fill(is_new, 0.0)",
        "carried[extension.slots]",
        "a request's first rows read what another one left in its slot",
        UNROLLED,
    ),
    Mutant(
        "rotary frequencies rounded",
        "deepspec/target/decoder.py",
        "if buffer.is_floating_point():",
        "if False:",
        "in bfloat16 far positions are turned by wrong angles",
        DECODER,
    ),
    Mutant(
        "blind to itself",
        "deepspec/target/packed.py",
        "seen = keys <= positions",
        "seen = (keys < positions) | (keys == 0)",
        "a token does not attend to itself",
        TARGET,
    ),
    Mutant(
        "block rule stops at the first failed test",
        "deepspec/kernels/reference.py",
        "accepted = (passes * steps).amax(dim=1)",
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
)
