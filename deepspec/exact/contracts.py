"""What single parts promise: confidence, calibrator and policy decide blindly, and training is decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from deepspec.exact.law import all_blocks
from deepspec.exact.properties import EXACT, Finding, Subject
from deepspec.exact.rows import Rows
from deepspec.exact.toy import ToyTarget
from deepspec.interfaces import LengthPolicy, Proposer
from deepspec.strategy import Parts
from deepspec.types import AnchorBlocks, Load, TokenBatch

#: float64 through a drafter's layers, whose rotary tables and norms may be float32.
SAME = 1e-5
_CONFIDENCES = ("linear", "row_max", "none")
_NUM_DRAWS = 300


def confidence(subject: Subject) -> Finding:
    """The confidence of a position does not change with the token drawn there or later."""
    worst = 0.0
    for seed in range(3):
        target, parts = subject.build(3, 3, seed)
        if parts.head.confidence not in _CONFIDENCES:
            allowed = ", ".join(_CONFIDENCES)
            return _broken(f"head.confidence is {parts.head.confidence!r}; allowed are {allowed}")
        if isinstance(parts.drafter, Proposer):
            return _holds("a model-free drafter gives none, and the policy reads none")
        vocab, num_draft = parts.drafter.readout().weight.shape[0], parts.drafter.context.draft_length
        blocks = all_blocks(vocab, num_draft)
        found = Rows(target, parts, [[0, 2, 1]] * len(blocks)).draft(blocks).drafted.confidence
        if found is None:
            return _holds("the head gives none, and the policy reads none")
        for k in range(num_draft):
            of_prefix = found[:, k].unflatten(0, (vocab**k, -1))
            worst = max(worst, float((of_prefix.amax(dim=1) - of_prefix.amin(dim=1)).max()))
    return Finding(
        error=worst,
        allowed=EXACT,
        holds="the same whatever is drawn at its position or later",
        broken="a position's confidence depends on the token drawn there or later (its own probability, "
        "say): a policy that reads it verifies some tokens more readily than others, and output is biased",
    )


def calibrator(subject: Subject) -> Finding:
    """Conditional acceptance lies in (0, 1), is monotone, and depends on its own confidence alone."""
    parts = subject.build(3, 3, 0)[1]
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return 5 * torch.randn(
            64, parts.drafter.context.draft_length, generator=generator, dtype=torch.float64
        )

    logits = random()
    found = parts.calibrator.conditional(logits)
    if found.shape != logits.shape or not bool(((found > 0) & (found < 1)).all()):
        return _broken(
            "conditional acceptance leaves (0, 1): survival may rise along a block, and a policy that "
            "orders by it admits a position before the one it depends on, which biases the output"
        )
    if bool((parts.calibrator.conditional(logits + 0.5) < found).any()):
        return _broken("a higher confidence gives a lower acceptance: the policy prefers the worse drafts")
    worst = 0.0
    for k in range(logits.shape[1]):
        other = random()
        other[:32, k] = logits[:32, k]
        worst = max(worst, float((parts.calibrator.conditional(other)[:32, k] - found[:32, k]).abs().max()))
    return Finding(
        error=worst,
        allowed=EXACT,
        holds="in (0, 1), monotone, each position and request by itself",
        broken="a position's acceptance depends on other positions' or requests' confidences: later ones "
        "know the token drawn here, so that its own value decides if it is verified, and output is biased",
    )


def policy(subject: Subject) -> Finding:
    """Verify lengths lie in 0..drafted and are jointly non-anticipating."""
    parts = subject.build(3, 3, 0)[1]
    num_draft = parts.drafter.context.draft_length
    generator = torch.Generator().manual_seed(0)
    for draw in range(_NUM_DRAWS):
        num = (1, 2, 5)[draw % 3]
        curve = 0.6 + 0.4 * torch.rand(num * (1 + num_draft), generator=generator, dtype=torch.float64)
        load = _load(num, 100 * curve.cumprod(dim=0) if draw % 2 else None, num_draft, generator)
        if not 0 <= (most := parts.policy.draft_length(load)) <= num_draft:
            return _broken(f"draft_length is {most}; allowed are 0..{num_draft}, what the drafter drafts")
        ragged = torch.randint(0, num_draft + 1, (num,), generator=generator)
        drafted = ragged if draw % 5 == 0 else torch.full((num,), num_draft)
        problem = _policy_problem(parts.policy, drafted, load, draw % 4 > 1, generator)
        if problem is not None:
            return _broken(problem)
    return _holds(f"in range, and blind to what lies past each request's first refusal ({_NUM_DRAWS} draws)")


def _load(num: int, curve: Tensor | None, num_draft: int, generator: torch.Generator) -> Load:
    """A load with some past: one in three has none."""
    if int(torch.randint(0, 3, (), generator=generator)) == 0:
        return Load(num, 0, curve)
    rates = torch.rand(3, num_draft, generator=generator, dtype=torch.float64)
    verified = rates[1].cumprod(dim=0)
    return Load(
        num,
        0,
        curve,
        past_survival=tuple(rates[0].cumprod(dim=0).tolist()),
        past_verified=tuple(verified.tolist()),
        past_accepted=tuple((rates[0].cumprod(dim=0) * verified).tolist()),
        rounds_short=int(100 * rates[0, 0]),
        earlier_survival=rates[2:].sqrt().cumprod(dim=1),
    )


def _policy_problem(
    policy: LengthPolicy, drafted: Tensor, load: Load, ties: bool, generator: torch.Generator
) -> str | None:
    """What is wrong with the lengths for random survival, and when all that they may not see changes."""
    num_draft = policy.context.draft_length

    def random() -> Tensor:
        drawn = torch.rand(len(drafted), num_draft, generator=generator, dtype=torch.float64)
        # Ties, and confidences so high that they round to 1, so that survival stays level.
        return (drawn * 3).ceil().div(3) if ties else drawn.clamp(1e-3, 1 - 1e-3)

    conditional = random()
    lengths = policy.lengths(conditional.cumprod(dim=1), drafted, load)
    if lengths.dtype != torch.int64 or lengths.shape != drafted.shape:
        return f"lengths are {lengths.dtype} {list(lengths.shape)}; they must be int64 {list(drafted.shape)}"
    if bool(((lengths < 0) | (lengths > drafted)).any()):
        return "a verify length is negative or above what was drafted: there is no token there to verify"
    unseen = torch.arange(num_draft) > lengths[:, None]
    for other in (conditional, torch.full_like(conditional, 1e-3), random(), random()):
        changed = torch.where(unseen, other, conditional).cumprod(dim=1)
        if not torch.equal(policy.lengths(changed, drafted, load), lengths):
            again = (policy.lengths(conditional.cumprod(dim=1), drafted, load) for _ in range(64))
            if not all(torch.equal(lengths, found) for found in again):
                return (
                    "asked again about the same confidences it gives other verify lengths: it draws them, or "
                    "remembers what it saw, so that a seed does not give the same text again, and what it "
                    "remembers of refused tokens may bias the output"
                )
            return (
                "the same confidences up to each request's first refused position give other verify lengths: "
                "what lies past that position depends on the tokens that are judged, so that a token's own "
                "value decides whether it is verified, and the output is biased"
            )
    return None


def head_block(subject: Subject) -> Finding:
    """The head's training pass is its decoding steps, one after the other."""
    worst = 0.0
    for seed in range(2):
        target, parts = subject.build(4, 3, seed)
        if isinstance(parts.drafter, Proposer):
            return _holds("the head has nothing to correct: a model-free drafter has no hidden states")
        head, num_draft = parts.head, parts.drafter.context.draft_length
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(
            5, num_draft, parts.drafter.hidden_size, generator=generator, dtype=torch.float64
        )
        previous = torch.randint(0, target.info.vocab_size, (5, num_draft), generator=generator)
        whole, state = head.block(previous, hidden), head.begin(hidden[:, 0])
        for k in range(num_draft):
            step, state = head.step(previous[:, k], hidden[:, k], state)
            for one, every in ((step.latent, whole.latent), (step.confidence, whole.confidence)):
                worst = max(worst, _difference(one, None if every is None else every[:, k]))
    return Finding(
        error=worst,
        allowed=SAME,
        holds="block() equals step() after step()",
        broken="block(), which is trained, is not step(), which decodes: training improves logits and "
        "confidences that decoding never computes, so that validation looks good and few drafts are accepted",
    )


def drafter_block(subject: Subject) -> Finding:
    """The drafter's training pass is its decoding steps with the labels as samples, after a rollback."""
    target, parts = subject.build(4, 3, 0)
    drafter = parts.drafter
    if isinstance(drafter, Proposer):
        return _proposals(target, parts)
    if not drafter.trainable:
        return _holds("the drafter has nothing to train")
    num_draft = drafter.context.draft_length
    ids = drafter.readout().target_ids
    ids = torch.arange(target.info.vocab_size) if ids is None else ids
    batch, anchors = _training_text(ids, num_draft)
    trained = drafter.block(batch, target.features(batch, drafter.target_layers), anchors)
    contexts = _contexts(batch, anchors)

    def stepped(some: list[int]) -> Tensor:
        texts, labels = [contexts[n] for n in some], anchors.labels[some]
        rows = Rows(target, parts, [text[:-2] for text in texts], num_rounds=2)
        wrong = (_rows_of(ids, labels) + 1) % len(ids)
        wrong[:, 0] = _rows_of(ids, torch.tensor([text[-2] for text in texts]))
        rows.draft(wrong)
        rows.accept_one(torch.tensor([text[-2:] for text in texts]))
        return rows.hidden(labels)

    every = list(range(len(contexts)))
    together, alone = stepped(every), torch.cat([stepped([n]) for n in every])
    return Finding(
        error=max(_difference(found, trained) for found in (together, alone)),
        allowed=SAME,
        holds=f"block() equals step() after a rollback ({len(every)} anchors in three documents, alone and "
        "together)",
        broken="block(), which is trained, is not step() with the same tokens, which decodes, or step() "
        "still sees what was rolled back, or other requests: validation looks good and few drafts are "
        "accepted",
    )


def _proposals(target: ToyTarget, parts: Parts) -> Finding:
    """What a model-free drafter proposes after a text is a function of that text alone."""
    generator = torch.Generator().manual_seed(0)
    vocab, num_draft = target.info.vocab_size, parts.drafter.context.draft_length
    lengths = torch.randint(3, 16, (24,), generator=generator).tolist()
    after = [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]

    def proposed(rows: Rows) -> list[list[int]]:
        drafted = rows.draft(torch.zeros(rows.num, num_draft, dtype=torch.int64)).drafted
        pairs = zip(drafted.draft.tokens.tolist(), drafted.lengths.tolist(), strict=True)
        return [tokens[:length] for tokens, length in pairs]

    alone = [proposed(Rows(target, parts, [text]))[0] for text in after]
    together = Rows(target, parts, after, num_rounds=2)
    ways = {"beside others": proposed(together), "asked twice": proposed(together)}
    together.restart(after[::-1])
    ways["in a used slot"] = proposed(together)[::-1]
    rolled = Rows(target, parts, [text[:-2] for text in after], num_rounds=2)
    proposed(rolled)
    rolled.accept_one(torch.tensor([text[-2:] for text in after]))
    ways["after a rollback"] = proposed(rolled)
    wrong = [name for name, found in ways.items() if found != alone]
    if wrong:
        return _broken(
            f"another proposal for the same text {' and '.join(wrong)}: it depends on more than the "
            "request's own text, so that its tokens depend on its neighbours and on what was refused, and a "
            "seed does not give the same text again"
        )
    return _holds(
        f"nothing to train; the same proposal for the same text {', '.join(ways)} ({len(after)} texts, "
        f"{sum(map(bool, alone))} of which have one)"
    )


def _difference(one: Tensor | None, other: Tensor | None) -> float:
    """The largest difference; infinite when only one is there or shapes differ."""
    if one is None and other is None:
        return 0.0
    if one is None or other is None or one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max())


def _rows_of(ids: Tensor, tokens: Tensor) -> Tensor:
    """Rows of a draft vocabulary whose target ids are ``ids [Vd]``, for tokens that it has."""
    return (tokens[..., None] == ids).int().argmax(dim=-1)


def _training_text(ids: Tensor, num_draft: int) -> tuple[TokenBatch, AnchorBlocks]:
    """Two rows of 16 of the tokens ``ids [Vd]``, the second of two documents, and anchors in all three."""
    tokens = ids[torch.randint(0, len(ids), (2, 16), generator=torch.Generator().manual_seed(0))]
    segments = torch.tensor([[0] * 16, [0] * 7 + [1] * 9])
    positions = torch.tensor([list(range(16)), [*range(7), *range(9)]])
    rows, columns = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([5, 11, 9, 3, 12])
    labels = tokens[rows[:, None], columns[:, None] + 1 + torch.arange(num_draft)]
    previous = torch.cat([tokens[rows, columns][:, None], labels[:, :-1]], dim=1)
    all_of = torch.ones_like
    batch = TokenBatch(tokens, segments, positions, all_of(tokens, dtype=torch.bool))
    return batch, AnchorBlocks(rows, columns, labels, previous, all_of(labels, dtype=torch.bool))


def _contexts(batch: TokenBatch, anchors: AnchorBlocks) -> list[list[int]]:
    """Each anchor's document up to it."""
    return [
        batch.tokens[row, column - int(batch.positions[row, column]) : column + 1].tolist()
        for row, column in zip(anchors.rows.tolist(), anchors.columns.tolist(), strict=True)
    ]


def _broken(why: str) -> Finding:
    return Finding(error=1.0, allowed=0.0, holds="", broken=why)


def _holds(what: str) -> Finding:
    return Finding(error=None, allowed=0.0, holds=what, broken="")
