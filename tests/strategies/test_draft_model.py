"""An independent draft model: architectures, vocabularies of other sizes, the tokenizer, whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspec_strategies.draft_model.drafter import DraftModel
from deepspec_strategies.draft_model.models import check_tokenizer
from safetensors.torch import load_file

import deepspec
from deepspec.config import TargetConfig
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import ConfigError, TargetError
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target, load_target, make_target
from deepspec.testing import check_strategy
from deepspec.train import train
from deepspec.types import AnchorBlocks
from tests.command_line import run
from tests.strategies.stepping import packed_batch, stepped
from tests.tiny_models import FAMILIES, VOCAB, make, masked_target
from tests.tiny_runs import VOCAB as TOKENS
from tests.tiny_runs import config, save_prompts, save_target, save_text
from tests.tiny_tokenizer import tokenizer

G = 4
CPU = torch.device("cpu")


def architecture(family: str = "qwen3", **changes: object) -> dict[str, Any]:
    """The configuration of a tiny model of two layers, as its folder would have it."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, **changes}
    return json.loads(make(family, **shape).config.to_json_string())


def strategy(**options: object) -> Strategy:
    return Strategy.named("draft_model").replace(draft_length=G, drafter=options)


def build(target: Target, **options: object) -> Parts:
    torch.manual_seed(0)
    parts = strategy(**options).build(target.info)
    parts.modules().to(target.dtype).eval()
    return parts


@pytest.fixture(scope="module")
def target() -> Target:
    return masked_target()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target on disk."""
    return save_target(tmp_path_factory.mktemp("target") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("text") / "text.jsonl")


def save_draft(folder: Path, family: str = "llama", vocab_size: int = TOKENS, **changes: object) -> Path:
    """A pretrained draft model with the target's tokenizer."""
    changes = {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.05, **changes}
    make(family, torch.float32, 7, vocab_size=vocab_size, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def true_blocks(rows: list[int], columns: list[int]) -> AnchorBlocks:
    batch = packed_batch()
    at = torch.tensor(rows), torch.tensor(columns)
    labels = batch.tokens[at[0][:, None], at[1][:, None] + 1 + torch.arange(G)]
    previous = torch.cat([batch.tokens[at][:, None], labels[:, :-1]], dim=1)
    return AnchorBlocks(*at, labels, previous, torch.ones_like(labels, dtype=torch.bool))


@pytest.mark.parametrize("vocab", [VOCAB, VOCAB - 30, VOCAB + 30], ids=["equal", "shorter", "longer"])
@pytest.mark.parametrize("family", [*FAMILIES, "qwen3_5"])
@torch.no_grad()
def test_block_equals_steps_after_ragged_chunks_refusals_and_a_preemption(
    target: Target, family: str, vocab: int
) -> None:
    drafter = build(target, architecture=architecture(family, vocab_size=vocab)).drafter
    batch, anchors = packed_batch(), true_blocks([1, 0, 1, 0, 1, 0], [15, 3, 2, 19, 12, 1])
    features = target.features(batch, drafter.target_layers)
    trained = drafter.block(batch, features, anchors)
    for seed, slots in enumerate([None, [4, 0, 5, 2, 7, 3]]):
        found = stepped(drafter, batch, features, anchors, slots=slots, seed=seed)
        torch.testing.assert_close(found, trained, atol=2e-5, rtol=2e-5)


def test_the_law_is_kept() -> None:
    check_strategy("draft_model").raise_if_failed()


def test_the_law_is_kept_when_the_draft_vocabulary_is_shorter_equal_or_longer() -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "head_dim": 4}
    chosen = strategy(architecture=architecture("gemma3", vocab_size=3, **sizes))
    check_strategy(chosen).raise_if_failed()  # on targets of 2, 3 and 4 tokens


def test_ids_past_the_shorter_vocabulary_are_never_drafted(target: Target) -> None:
    for vocab in (VOCAB - 30, VOCAB + 30):
        drafter = build(target, architecture=architecture(vocab_size=vocab)).drafter
        readout = drafter.readout()
        assert len(readout.weight) == min(vocab, VOCAB)
        assert (readout.target_ids is None) == (vocab > VOCAB)
    assert readout.trained


def test_the_target_as_its_own_draft_model_is_accepted_whole(folder: Path) -> None:
    target = load_target(TargetConfig(name=str(folder)), device="cpu")
    records = []
    engine = Engine(target, build(target, model=str(folder)), max_batch=2, observers=[records.append])
    engine.run([[5, 6, 7], [9, 8]], SamplingParams(max_tokens=21, seed=1, ignore_stop=True))
    shares = [share for record in records for share in record.requests if share.drafted]
    assert len(shares) > 4
    assert all(share.accepted == share.verified for share in shares)


def test_a_small_model_starts_from_the_targets_embedding_and_lm_head() -> None:
    target = make_target(make("gemma3", torch.float32))
    drafter = build(target, num_layers=3).drafter
    assert isinstance(drafter, DraftModel)
    model = drafter.decoder.model
    assert (model.config.model_type, model.config.num_hidden_layers) == ("qwen3", 3)
    expected = target.model.get_input_embeddings()(torch.arange(9))
    torch.testing.assert_close(model.get_input_embeddings()(torch.arange(9)), expected)
    torch.testing.assert_close(drafter.readout().weight, target.info.lm_head)
    assert not drafter.pretrained


@pytest.mark.parametrize(
    ("family", "vocab"), [(None, TOKENS), ("gemma3", TOKENS - 1), ("llama", TOKENS + 12)]
)
def test_a_run_needs_nothing_but_its_folder(
    family: str | None, vocab: int, folder: Path, text: Path, tmp_path: Path
) -> None:
    model = None if family is None else str(save_draft(tmp_path / "draft", family, vocab))
    settings = config(folder, text, chosen=strategy(model=model), train={"num_steps": 1})
    trained = train(settings.strategy, config=settings, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "draft", ignore_errors=True)
    loaded = deepspec.load(tmp_path / "run", device="cpu")
    assert not loaded.parts.drafter.pretrained
    for name, weight in trained.parts.modules().state_dict().items():
        torch.testing.assert_close(loaded.parts.modules().state_dict()[name], weight, atol=0, rtol=0)
    assert "".join(deepspec.generate(loaded, "the cat", params=SamplingParams(max_tokens=9, seed=1)))


def test_resuming_equals_not_stopping_and_needs_no_other_model(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    chosen = strategy(model=str(save_draft(tmp_path / "draft", vocab_size=TOKENS + 12)))
    settings = config(folder, text, chosen=chosen, train={"num_steps": 2, "checkpoint_every": 1})
    expected = train(chosen, config=settings, out=tmp_path / "run").parts.modules().state_dict()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
    shutil.rmtree(tmp_path / "draft")
    resumed = train(chosen, config=settings, out=tmp_path / "run", resume=True)
    for name, weight in resumed.parts.modules().state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=0, rtol=0)
    state = json.loads((tmp_path / "run/checkpoints/step-000002/state.json").read_text())
    assert state["strategy"]["drafter"]["architecture"]["vocab_size"] == TOKENS + 12


def test_training_moves_every_weight_and_vocabulary_matrices_by_adamw(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    model = str(save_draft(tmp_path / "draft", "llama", TOKENS + 12, tie_word_embeddings=False))
    chosen = strategy(model=model)
    settings = config(folder, text, chosen=chosen, train={"num_steps": 1, "precision": "bfloat16"})
    parts = train(chosen, config=settings, out=tmp_path / "run").parts
    before = build(make_target(make("qwen3", vocab_size=TOKENS)), model=model).modules().float().state_dict()
    same = [n for n, weight in parts.modules().state_dict().items() if torch.equal(weight, before[n])]
    assert same == []
    path = tmp_path / "run/checkpoints/step-000001/optimizer.safetensors"
    kept = load_file(path)
    for name in ("embed_tokens", "lm_head"):
        assert [key for key in kept if f"{name}.weight/exp_avg" in key]


def only_line(*words: object) -> str:
    """The one line of a command that was refused."""
    ran = run(*words)
    assert (ran.code, ran.out) == (2, ""), ran.err
    (line,) = ran.err.splitlines()
    return line


def refused(folder: Path, text: Path, out: Path, *sets: str) -> str:
    flags = [word for item in sets for word in ("--set", item)]
    command = ("train", "--strategy", "draft_model", "--target", folder, "--data", text, "--out", out)
    line = only_line(*command, "--device", "cpu", "--no-eval", *flags)
    assert not out.exists()
    return line


def test_another_tokenizer_is_refused(folder: Path, text: Path, tmp_path: Path) -> None:
    other = save_draft(tmp_path / "other")
    path = other / "tokenizer.json"
    tokens = json.loads(path.read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    path.write_text(json.dumps(tokens))
    line = refused(folder, text, tmp_path / "run", f"drafter.model={other}")
    assert line == (
        f"error: draft model '{other}' has another tokenizer than the target, or none: id 0 is '!' in the "
        "target's and '\"' in its own; give drafter.model a model with the target's tokenizer"
    )


def test_a_model_without_a_tokenizer_is_refused(folder: Path, text: Path, tmp_path: Path) -> None:
    for family, words in (
        ("qwen3", "than the target, or none: id 0 is"),
        ("llama", "the folder has no tokenizer"),
    ):
        bare = save_draft(tmp_path / family, family)
        for file in bare.glob("*token*"):
            file.unlink()
        assert words in refused(folder, text, tmp_path / "run", f"drafter.model={bare}")


def test_what_cannot_be_had_is_one_line(folder: Path, text: Path, tmp_path: Path) -> None:
    def line(*sets: str) -> str:
        return refused(folder, text, tmp_path / "run", *sets)

    assert "draft model './absent' does not exist; give a folder" in line("drafter.model=./absent")
    absent = "'Owner/Model' is not in the local cache, and HF_HUB_OFFLINE is set; give a local folder"
    assert line("drafter.model=Owner/Model").endswith(absent)
    kinds = 'drafter.architecture={"model_type": "qwen9"}'
    assert "drafter.architecture is no causal language model's configuration" in line(kinds)
    for given in (
        '"model_type": "qwen3", "num_attention_heads": 5, "num_key_value_heads": 2',
        '"model_type": "qwen3", "num_attention_heads": 0',
        '"model_type": "bert", "num_attention_heads": 4',
    ):
        sizes = f'drafter.architecture={{{given}, "hidden_size": 48, "vocab_size": 97}}'
        assert "drafter.architecture is no causal language model's configuration" in line(sizes)
    assert "give model, whose weights are read, or architecture" in line(kinds, "drafter.model=demo")
    assert "revision is a named model's; give model, too" in line("drafter.revision=v1")
    assert "leave it out beside model or architecture" in line("drafter.num_layers=1", kinds)


def test_layers_that_keep_another_state_are_refused(folder: Path) -> None:
    target = make_target(make("qwen3"))
    other = architecture(layer_types=["chunked_attention", "full_attention"])
    with pytest.raises(TargetError, match="has chunked_attention layers of a kind that is not supported"):
        build(target, architecture=other)


def test_a_few_tokens_that_were_added_later_may_be_missing() -> None:
    mine = {f"t{number}": number for number in range(300)}
    check_tokenizer("mine", mine, mine)
    check_tokenizer("mine", {**mine, "more": 300}, mine)
    check_tokenizer("mine", mine, {**mine, "<think>": 300, "</think>": 301})
    with pytest.raises(ConfigError, match="id 300 is 'new' in the target's and 'old' in its own"):
        check_tokenizer("mine", {**mine, "old": 300}, {**mine, "new": 300})
    with pytest.raises(ConfigError, match="id 300 is 't5' in the target's and nothing in its own"):
        check_tokenizer("mine", mine, {**mine, "t5": 300})
    with pytest.raises(ConfigError, match="it lacks 300 of the target's 600 tokens"):
        check_tokenizer("mine", mine, {f"t{number}": number for number in range(600)})


def test_a_pretrained_model_is_measured_without_training(folder: Path, tmp_path: Path) -> None:
    prompts = save_prompts(tmp_path / "prompts.jsonl", ["the cat sat", "on the mat"])
    ran = run(
        *("eval", "--strategy", "draft_model", "--target", folder, "--set", f"drafter.model={folder}"),
        *("--task-file", f"mine={prompts}", "--max-tokens", "16", "--device", "cpu", "--json"),
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["conditional_acceptance"][0] > 0.99
