"""The Triton kernels decide as the float64 reference: interpreted, or compiled where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.kernels import triton_philox, triton_rules
from deepspec.kernels.triton_rules import Workspace
from deepspec.sampling import SamplingParams, Stream, batch_sampling, categorical, uniforms
from deepspec.types import Draft, Sampling, TargetRows, Verdict
from tests.kernels import rounds
from tests.kernels.rounds import DEVICE, NEG_INF, Round, make_round

# NumPy computes both branches of a choice, and warns of the one that is not taken.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning:triton.runtime.interpreter"
)

#: float32 exponentials and sums of at most 64 terms are off by about 1e-6; exactness asks for 1e-5 or less.
MARGIN = 2e-6
#: Drafted tokens, vocabulary, block: one block, several, one that is not filled, one token.
SIZES = ((0, 7, 4), (1, 1, 16), (1, 33, 64), (1, 17, 16), (2, 12, 16), (2, 24, 32), (3, 64, 64))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXACT: dict[str, Callable[[Round], tuple[Verdict, Tensor]]] = {
    "token": rounds.token_rule,
    "block": rounds.block_rule,
    "delta": rounds.delta_rule,
}


def placed(given: Round) -> Round:
    """The round on the device of these tests."""

    def move(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(DEVICE)
        if isinstance(value, TargetRows | Draft | Sampling):
            return replace(value, **{name: move(field) for name, field in vars(value).items()})
        return value

    return Round(**{name: move(field) for name, field in vars(given).items()})


def decide(rule: str, given: Round, block: int) -> tuple[list[int], list[int]]:
    """Accepted counts and closing tokens of a kernel whose workspace was poisoned first."""
    here = placed(given)
    num, num_draft = here.draft.tokens.shape
    workspace = Workspace.allocate(num, num_draft, here.target.logits.shape[1], DEVICE, block=block)
    workspace.poison()
    noise = (here.noise,) if rule == "delta" else (here.accept, here.residual)
    run = getattr(triton_rules, f"{rule}_rule")
    verdict = run(here.target, here.draft, here.lengths, *noise, workspace=workspace, block=block)
    return verdict.accepted.tolist(), verdict.bonus.tolist()


@dataclass
class Tally:
    requests: int = 0
    excused: int = 0

    def compare(self, rule: str, given: Round, block: int, *, truncated: bool = False) -> None:
        """Every request that is not within the margin of another decision has the reference's."""
        exact = given.exact()
        expected, margin = EXACT[rule](exact)
        if truncated:
            margin = torch.minimum(margin, rounds.cut_margin(exact))
        found = decide(rule, given, block)
        for r, near in enumerate((margin < MARGIN).tolist()):
            self.requests += 1
            self.excused += near
            if not near:
                pair = (int(expected.accepted[r]), int(expected.bonus[r]))
                assert (found[0][r], found[1][r]) == pair, (rule, r, margin[r])


def test_decisions_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally()

    @settings(phases=[Phase.generate])  # a smaller seed is no simpler round
    @given(st.integers(0, 2**30), st.sampled_from(SIZES), st.sampled_from(DTYPES), st.booleans())
    def holds(seed: int, sizes: tuple[int, int, int], dtype: torch.dtype, one_hot: bool) -> None:
        num_draft, vocab, block = sizes
        monkeypatch.setattr(categorical, "BLOCK", block)
        made = make_round(seed, num_draft=num_draft, vocab=vocab, dtype=dtype, one_hot=one_hot)
        for rule in EXACT:
            tally.compare(rule, made, block)

    holds()
    assert tally.requests >= 2000
    assert tally.excused <= 0.001 * tally.requests, tally


@pytest.mark.parametrize(("rule", "dtype"), list(zip(EXACT, DTYPES, strict=True)))
def test_truncation_of_some_requests_is_the_references(
    rule: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(categorical, "BLOCK", 16)
    tally = Tally()
    made = make_round(1, num_draft=1, vocab=19, dtype=dtype, num=28, truncate=True)
    tally.compare(rule, made, 16, truncated=True)
    assert tally.excused == 0


@pytest.mark.parametrize("rule", EXACT)
def test_a_request_alone_equals_it_among_sixty_four_bit_for_bit(rule: str) -> None:
    given = make_round(3, num_draft=2, vocab=21, dtype=torch.float32, num=64)
    together = decide(rule, given, 16)
    for r in range(0, 64, 9):
        alone = decide(rule, given.only(r), 16)
        assert (alone[0][0], alone[1][0]) == (together[0][r], together[1][r])


def test_what_the_kernels_sum_is_the_same_alone_and_together() -> None:
    given = placed(make_round(3, num_draft=2, vocab=21, dtype=torch.float32, num=64))

    def sums(part: Round) -> Workspace:
        workspace = Workspace.allocate(len(part.lengths), 2, 21, DEVICE, block=16)
        workspace.poison()
        noise = (part.accept, part.residual)
        triton_rules.block_rule(part.target, part.draft, part.lengths, *noise, workspace=workspace, block=16)
        return workspace

    together = sums(given)
    for r in (0, 1, 2, 6, 31, 63):
        alone = sums(placed(given.only(r)))
        for name in ("row_peaks", "row_logs", "log_runs", "totals", "masses"):
            mine: Tensor = getattr(alone, name)
            rows = getattr(together, name).view(64, -1)[r]
            assert torch.equal(mine.nan_to_num(nan=-7.0), rows.nan_to_num(nan=-7.0)), name


def bare(p: list[list[float]], q: list[list[float]] | None, tokens: list[int], num: int) -> Round:
    """``num`` times the same request of plain probabilities, whose noise is all 0."""
    log_p = torch.tensor(p).log()
    num_draft, vocab = len(tokens), log_p.shape[1]
    drafted = torch.tensor([tokens] * num, dtype=torch.int64).view(num, num_draft)
    log_q = torch.zeros(num, num_draft, vocab) if q is None else torch.tensor([q] * num).log()
    total = torch.zeros(num, num_draft)
    scored = total if q is None else log_q.gather(-1, drafted[..., None])[..., 0]
    sampling = batch_sampling([SamplingParams()] * num, vocab, torch.device("cpu"))
    return Round(
        TargetRows(log_p.repeat(num, 1), torch.arange(num) * (num_draft + 1), sampling),
        Draft(drafted, None if q is None else log_q, total, scored),
        torch.full((num,), num_draft),
        torch.zeros(num, num_draft, dtype=torch.float64),
        torch.zeros(num, 2, dtype=torch.float64),
        torch.zeros(num, num_draft + 1, 2, dtype=torch.float64),
    )


@pytest.mark.parametrize("rule", ["token", "block"])
def test_acceptance_is_strict_at_equality(rule: str) -> None:
    half = [[0.5, 0.5], [0.5, 0.5]]
    uniform = torch.tensor([[0.0], [0.5 - 2**-24], [0.5], [1 - 2.0**-53]], dtype=torch.float64)
    given = replace(bare(half, None, [1], 4), accept=uniform)
    assert decide(rule, given, 16) == ([1, 1, 0, 0], [0, 0, 0, 0])
    impossible = replace(bare([[1.0, 0.0], [0.5, 0.5]], None, [1], 4), accept=uniform)
    assert decide(rule, impossible, 16) == ([0, 0, 0, 0], [0, 0, 0, 0])
    equal = replace(bare(half, half[:1], [1], 4), accept=uniform)
    assert decide(rule, equal, 16)[0] == [1, 1, 1, 1]


@pytest.mark.parametrize("block", [2, 4, 16])
def test_a_draw_on_a_step_gives_the_next_token_and_never_one_without_mass(block: int) -> None:
    rows = [[0.25, 0.0, 0.25, 0.25, 0.0, 0.0, 0.25, 0.0]]
    steps = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    noise = torch.stack([steps, torch.zeros(5).double() if block < 8 else steps], -1)
    given = replace(bare(rows, None, [], 5), residual=noise, noise=noise[:, None])
    # In blocks of 2 and 4 the masses are 1 2 0 1 and 3 1 quarters; a second uniform of 0 takes the first.
    expected = {2: [0, 2, 2, 6, 6], 4: [0, 0, 0, 6, 6], 16: [0, 2, 3, 6, 6]}[block]
    for rule in EXACT:
        assert decide(rule, given, block)[1] == expected


def test_an_empty_residual_gives_the_argmax() -> None:
    equal = bare([[0.25, 0.75], [0.5, 0.5]], [[0.25, 0.75]], [0], 2)
    forced = replace(equal, draft=replace(equal.draft, log_q=torch.full((2, 1), 1.0)))
    refused = replace(forced, accept=torch.full((2, 1), 0.5, dtype=torch.float64))
    assert decide("token", refused, 16) == ([0, 0], [1, 1])


@pytest.mark.parametrize("rule", ["token", "block"])
def test_one_noise_for_acceptance_and_residual_is_another_law(rule: str) -> None:
    """p = (.2, .4, .4), q = (.8, .1, .1), token 0: refused from u = 1/4 on, and then 1 or 2, evenly."""
    num = 64
    given = bare([[0.2, 0.4, 0.4]] * 2, [[0.8, 0.1, 0.1]], [0], num)
    grid = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    stride = (torch.arange(num) * 25) % num  # visits the grid in another order
    shares = []
    for second in (grid[stride], grid):
        noise = torch.stack([second, second], dim=-1)
        accepted, bonus = decide(rule, replace(given, accept=grid[:, None], residual=noise), 16)
        assert accepted == [1] * (num // 4) + [0] * (num - num // 4)
        shares.append([bonus[num // 4 :].count(token) / (num - num // 4) for token in range(3)])
    assert shares[0] == pytest.approx([0.0, 0.5, 0.5], abs=1 / 24)  # two of the 48 points
    assert shares[1] == pytest.approx([0.0, 1 / 3, 2 / 3], abs=1e-9)


def test_a_vocabulary_of_a_real_model_in_its_real_blocks() -> None:
    for rule, dtype in (("token", torch.bfloat16), ("block", torch.float32), ("delta", torch.bfloat16)):
        given = make_round(11, num_draft=1, vocab=151_936, dtype=dtype, num=2)
        exact = given.exact()
        verdict, _ = EXACT[rule](exact)
        # A step of the cumulative distribution is nowhere far off here: seeds were taken as they came.
        assert decide(rule, given, categorical.BLOCK) == (verdict.accepted.tolist(), verdict.bonus.tolist())


def test_streams_are_those_of_the_host_bit_for_bit() -> None:
    generator = np.random.default_rng(0)
    keys = [generator.integers(0, 2**bits, 300, dtype=np.uint64) for bits in (64, 40, 5, 2)]
    for epoch in (0, 3):
        expected = uniforms(keys[0], keys[1], keys[2], keys[3], epoch)
        given = [torch.from_numpy(key.view(np.int64)).to(DEVICE) for key in keys]
        found = triton_philox.uniforms(*given, torch.tensor(epoch, device=DEVICE))
        assert np.array_equal(found.cpu().numpy(), expected)
    assert max(Stream) < 4


@pytest.mark.parametrize("rule", EXACT)
def test_no_input_leads_outside_the_arrays(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths, starts, ids and logits of any kind; the interpreter's loads and stores are watched."""
    given = make_round(5, num_draft=3, vocab=19, dtype=torch.bfloat16, num=16, truncate=True)
    wild = torch.tensor([-(2**63), -5, -1, 0, 1, 2, 3, 4, 7, 18, 19, 20, 1000, 2**31, 2**40, 2**63 - 1])
    shuffled = torch.stack([wild.roll(k) for k in range(3)], dim=1)
    target = replace(given.target, starts=wild.roll(5), logits=given.target.logits.clone())
    target.logits[::3] = float("nan")
    target.logits[1::3] = NEG_INF
    bad = replace(given, target=target, draft=replace(given.draft, tokens=shuffled), lengths=wild.clone())
    watch_memory(monkeypatch)
    accepted, bonus = decide(rule, bad, 8)
    assert all(0 <= a <= 3 for a in accepted)
    assert all(0 <= token < 19 for token in bonus)


def watch_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter fail on an access outside the tensors that its kernel was launched with."""
    from triton.runtime import interpreter

    real, run = interpreter._interpreter, interpreter.GridExecutor.__call__
    spans: list[tuple[int, int]] = []

    def check(addresses: np.ndarray, mask: np.ndarray) -> None:
        for address in np.broadcast_to(addresses, mask.shape)[mask].tolist():
            assert any(low <= address < high for low, high in spans), "an access outside every array"

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def load(self, addresses: np.ndarray, mask: np.ndarray, *rest: object) -> object:
            check(addresses, mask)
            return real.load(addresses, mask, *rest)

        def store(self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray) -> object:
            check(addresses, mask)
            return real.store(addresses, values, mask)

    def launch(self: object, *args: object, **kwargs: object) -> object:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        spans[:] = [(t.data_ptr(), t.data_ptr() + _extent(t)) for t in tensors]
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter, "_interpreter", Watched())
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to past its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


def test_the_watch_of_memory_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type != "cpu":
        return
    from triton.runtime.errors import InterpreterError

    watch_memory(monkeypatch)
    given = make_round(5, num_draft=1, vocab=9, dtype=torch.float32, num=2)
    workspace = Workspace.allocate(2, 1, 9, DEVICE, block=16)
    short = replace(workspace, peaks=workspace.peaks[:1])
    monkeypatch.setattr(Workspace, "check", lambda *sizes: None)
    with pytest.raises((AssertionError, InterpreterError), match="outside every array"):
        triton_rules.delta_rule(
            given.target, given.draft, given.lengths, given.noise, workspace=short, block=16
        )


def test_what_the_kernels_cannot_take_is_said() -> None:
    given = placed(make_round(0, num_draft=1, vocab=9, dtype=torch.float64, num=2))
    with pytest.raises(ConfigError, match=r"logits are torch\.float64; the Triton kernels read"):
        triton_rules.delta_rule(given.target, given.draft, given.lengths, given.noise)
    given = placed(make_round(0, num_draft=1, vocab=9, dtype=torch.float32, num=2))
    single = given.target
    with pytest.raises(ConfigError, match="a workspace of 3 requests"):
        triton_rules.delta_rule(
            single, given.draft, given.lengths, given.noise, workspace=Workspace.allocate(3, 1, 9, DEVICE)
        )
    with pytest.raises(ConfigError, match="2 requests with no target rows"):
        triton_rules.delta_rule(
            replace(single, logits=single.logits[:0]), given.draft, given.lengths, given.noise
        )


def test_no_request_is_an_empty_verdict() -> None:
    given = make_round(0, num_draft=2, vocab=9, dtype=torch.float32, num=4)
    none = Draft(*(getattr(given.draft, n)[:0] for n in ("tokens", "logits", "log_sum_exp", "log_q")))
    sampling = batch_sampling([], 9, torch.device("cpu"))
    target = TargetRows(given.target.logits[:0], given.target.starts[:0], sampling)
    empty = Round(target, none, given.lengths[:0], given.accept[:0], given.residual[:0], given.noise[:0])
    for rule in EXACT:
        assert decide(rule, empty, 16) == ([], [])
