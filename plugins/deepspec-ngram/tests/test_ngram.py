"""N-gram lookup: what it proposes, beside a plain search in Python, and that it keeps the output's law."""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from deepspec_ngram import proposer
from deepspec_ngram.proposer import NgramProposer
from torch._subclasses.fake_tensor import FakeTensorMode

from deepspec import DeepSpecError, Engine, SamplingParams, Strategy
from deepspec.interfaces import BuildContext
from deepspec.testing import ToyTarget, check_part
from deepspec.types import Anchors, Extension, Features, Proposal, Span

VOCAB, NUM_DRAFT, ROOM = 3, 4, 64
#: What a plugin may import: the modules that DeepSpec's documentation names.
PUBLIC = {"deepspec", "deepspec.interfaces", "deepspec.nn", "deepspec.types"}


def made(num_slots: int = 1, **options: int) -> NgramProposer:
    config = NgramProposer.Config(**options)
    drafter = NgramProposer(config, BuildContext(target=ToyTarget(VOCAB).info, draft_length=NUM_DRAFT))
    drafter.allocate(num_slots, ROOM, torch.float32, torch.device("cpu"))
    return drafter


def taken_in(drafter: NgramProposer, texts: Sequence[Sequence[int]]) -> None:
    """Each text but its last token, the anchor, into the slot of its number."""
    spans = tuple(Span(slot, 0, len(text) - 1) for slot, text in enumerate(texts) if len(text) > 1)
    rows = [span.slot for span in spans for _ in range(span.length)]
    tokens = [token for text in texts for token in text[:-1]]
    none = torch.zeros(len(tokens), 0)
    drafter.extend(
        Extension(
            slots=torch.tensor([span.slot for span in spans], dtype=torch.int64),
            spans=spans,
            rows=torch.tensor(rows, dtype=torch.int64),
            positions=torch.tensor([i for span in spans for i in range(span.length)], dtype=torch.int64),
            tokens=torch.tensor(tokens, dtype=torch.int64),
            next_tokens=torch.tensor([t for text in texts for t in text[1:]], dtype=torch.int64),
            features=Features(none, none),
        )
    )


def anchors(texts: Sequence[Sequence[int]], num_draft: int = NUM_DRAFT) -> Anchors:
    spans = tuple(Span(slot, len(text) - 1, 1) for slot, text in enumerate(texts))
    return Anchors(
        slots=torch.arange(len(texts)),
        tokens=torch.tensor([text[-1] for text in texts]),
        positions=torch.tensor([span.start for span in spans]),
        spans=spans,
        num_draft=num_draft,
    )


def listed(proposal: Proposal) -> list[list[int]]:
    pairs = zip(proposal.tokens.tolist(), proposal.lengths.tolist(), strict=True)
    return [tokens[:length] for tokens, length in pairs]


def proposed(texts: Sequence[Sequence[int]], **options: int) -> list[list[int]]:
    drafter = made(len(texts), **options)
    taken_in(drafter, texts)
    return listed(drafter.propose(anchors(texts)))


def searched(text: Sequence[int], max_ngram: int, min_ngram: int) -> list[int]:
    """The definition, word by word."""
    for length in range(max_ngram, min_ngram - 1, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if list(text[end - length : end]) == list(text[-length:]):
                return list(text[end : end + NUM_DRAFT])
    return []


@pytest.mark.parametrize(("max_ngram", "min_ngram"), [(1, 1), (3, 1), (4, 2), (5, 5)])
def test_it_proposes_what_the_definition_says(max_ngram: int, min_ngram: int) -> None:
    rng = random.Random(0)
    texts = [rng.choices(range(VOCAB), k=rng.randint(1, 40)) for _ in range(200)]
    expected = [searched(text, max_ngram, min_ngram) for text in texts]
    assert {len(each) for each in expected} >= {0, NUM_DRAFT}
    assert proposed(texts, max_ngram=max_ngram, min_ngram=min_ngram) == expected


def test_the_longest_suffix_wins_then_the_most_recent() -> None:
    assert proposed([[0, 1, 2, 2, 1, 0, 0, 1]], max_ngram=2) == [[2, 2, 1, 0]]
    assert proposed([[0, 1, 2, 2, 1, 0, 0, 1]], max_ngram=1) == [[0, 0, 1]]
    assert proposed([[0, 1, 2, 2]], min_ngram=2) == [[]]
    assert proposed([[0]]) == [[]]


def test_a_slot_forgets_its_last_request() -> None:
    drafter = made()
    taken_in(drafter, [[0, 1, 2, 0, 1, 2, 0, 1]])
    drafter.release(0)
    taken_in(drafter, [[1, 0]])
    assert listed(drafter.propose(anchors([[1, 0]]))) == [[]]


def test_fewer_tokens_are_proposed_when_fewer_are_asked_for() -> None:
    drafter, text = made(), [0, 1, 2, 0]
    taken_in(drafter, [text])
    assert listed(drafter.propose(anchors([text], 2))) == [[1, 2]]


def test_proposing_waits_for_no_device() -> None:
    texts = [[0, 1, 0], [2, 1, 2, 0]]
    with FakeTensorMode():  # tensors without values: looking at one raises
        drafter = made(len(texts))
        taken_in(drafter, texts)
        proposal = drafter.propose(anchors(texts))
    assert proposal.tokens.shape == (2, NUM_DRAFT)
    assert proposal.lengths.shape == (2,)


def test_wrong_options_are_refused_in_one_line() -> None:
    wrong = Strategy.named("ngram").replace(drafter={"max_ngram": 2, "min_ngram": 3})
    with pytest.raises(DeepSpecError, match=r"drafter 'ngram': min_ngram is 3; allowed are 1\.\.2"):
        wrong.check()


def test_it_passes_every_property_of_the_check() -> None:
    check_part(NgramProposer).raise_if_failed()


@pytest.mark.parametrize("verifier", ["token", "delta"])
def test_the_engine_decodes_with_it_and_accepts_what_repeats(verifier: str) -> None:
    target = ToyTarget(5)
    parts = Strategy.named("ngram").replace(verifier=verifier).build(target.info)
    rounds = []
    engine = Engine(target, parts, max_positions=200, observers=[lambda r: rounds.extend(r.requests)])
    params = SamplingParams(temperature=0.0, max_tokens=100)
    prompts = [[1, 2], [3], [0, 4, 2]]
    found = [completion.tokens for completion in engine.run(prompts, params)]
    plain = [done.tokens for done in Engine(target, max_positions=200).run(prompts, params)]
    assert found == plain
    assert sum(r.accepted for r in rounds) > len(rounds)  # a greedy toy runs in circles
    assert any(r.drafted == 0 for r in rounds)


def test_it_uses_public_names_alone() -> None:
    names = set()
    for path in Path(proposer.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            names |= {each.name for each in node.names} if isinstance(node, ast.Import) else set()
    used = {name for name in names if name and name.startswith("deepspec") and "ngram" not in name}
    assert used
    assert used <= PUBLIC
