"""A reduced draft vocabulary: chosen by frequency before training, kept in checkpoints, lossless."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deepspec import load
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import ConfigError
from deepspec.nn import DraftVocabulary
from deepspec.runs import newest_checkpoint
from deepspec.strategy import Strategy
from deepspec.testing import check_strategy
from deepspec.train import train
from tests.tiny_models import tiny_info
from tests.tiny_runs import VOCAB, config, save_target, save_text

STRATEGIES = pytest.mark.parametrize("name", ["eagle3", "mtp"])


def test_the_most_frequent_tokens_are_taken_and_the_required_ones() -> None:
    info = tiny_info()
    vocabulary = DraftVocabulary(info, 4)
    counts = torch.zeros(info.vocab_size, dtype=torch.int64)
    counts[[90, 7, 8, 50, 51]] = torch.tensor([60, 20, 12, 5, 3])
    assert vocabulary.choose(counts, [2]) == pytest.approx(0.92)
    assert vocabulary.target_ids.tolist() == [2, 7, 8, 90]
    assert vocabulary.weight.equal(info.lm_head[[2, 7, 8, 90]])
    with pytest.raises(ConfigError, match="is 4; the target has 5 special tokens"):
        vocabulary.choose(counts, range(5))


def test_the_whole_vocabulary_is_the_targets_own_head() -> None:
    info = tiny_info()
    vocabulary = DraftVocabulary(info, None)
    assert vocabulary.weight is info.lm_head
    assert vocabulary.choose(torch.ones(info.vocab_size, dtype=torch.int64), [1]) is None
    assert vocabulary.state_dict() == {}


def test_a_checkpoint_brings_its_tokens_and_their_rows() -> None:
    info = tiny_info()
    first, second = DraftVocabulary(info, 3), DraftVocabulary(info, 3)
    counts = torch.arange(info.vocab_size)
    first.choose(counts, [0])
    second.load_state_dict(first.state_dict())
    assert second.weight.equal(info.lm_head[[0, 95, 96]])


@pytest.mark.parametrize("size", [0, VOCAB + 1])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="draft_vocab_size"):
        Strategy.named("eagle3").replace(drafter={"draft_vocab_size": size}).build(tiny_info())


@STRATEGIES
def test_a_run_reports_its_coverage_and_drafts_nothing_else(name: str, tmp_path: Path, caplog) -> None:
    folder, text = save_target(tmp_path / "target"), save_text(tmp_path / "text.jsonl")
    chosen = Strategy.named(name).replace(draft_length=3, drafter={"draft_vocab_size": 12})
    settings = config(folder, text, chosen=chosen)
    with caplog.at_level("INFO"):
        run = train(settings.strategy, config=settings, out=tmp_path / "run")
    state = json.loads((newest_checkpoint(run.path) / "state.json").read_text())
    assert 0.5 < state["vocabulary_coverage"] < 1
    assert f"covers {100 * state['vocabulary_coverage']:.2f} % of the text's labels" in caplog.text
    loaded = load(run.path, device="cpu")
    ids = loaded.parts.drafter.readout().target_ids
    assert ids.equal(run.parts.drafter.readout().target_ids)
    assert len(ids) == 12
    assert set(run.target.stop_token_ids) <= set(ids.tolist())
    assert run.target.tokenizer.encode("t")[0] in ids, "a letter of nearly every word"
    drafted: list[int] = []
    original = loaded.parts.verifier.verify

    def watched(rows, draft, lengths, uniforms):
        drafted.extend(draft.tokens.flatten().tolist())
        return original(rows, draft, lengths, uniforms)

    loaded.parts.verifier.verify = watched
    engine = Engine(loaded.target, loaded.parts, max_batch=2)
    engine.run([[1, 2, 3], [4, 5]], SamplingParams(max_tokens=12, ignore_stop=True))
    assert drafted
    assert set(drafted) <= set(ids.tolist())
    resumed = train(settings.strategy, config=settings, out=tmp_path / "run", resume=True)
    assert resumed.parts.drafter.readout().target_ids.equal(ids)


def test_the_output_law_is_kept() -> None:
    check_strategy(Strategy.named("eagle3").replace(drafter={"draft_vocab_size": 2})).raise_if_failed()
