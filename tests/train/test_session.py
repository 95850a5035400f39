"""Whole training runs on a tiny target: resumed bit for bit, stopped cleanly, bad input refused first."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pluggy
import pytest
import torch
from deepspec_strategies.dflash.drafter import DFlashDrafter
from safetensors import SafetensorError

from deepspec.config import TargetConfig
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeepSpecError,
    PluginError,
    ResourceError,
    TrainingError,
)
from deepspec.hookspecs import hookimpl
from deepspec.plugins import create_plugin_manager, register
from deepspec.redecoding import redecoded
from deepspec.runs import checkpoint_path, checkpoints, load
from deepspec.target import Target, load_target
from deepspec.train import GradedRows, ObjectiveTerm, TrainingInterruptedError, train
from deepspec.train import checkpoint as checkpoint_module
from deepspec.train import session as session_module
from deepspec.train.terms import CrossEntropy
from deepspec.train.trainer import Trainer, make_objective
from deepspec.train.validation import Validation, ValidationResult
from deepspec.types import Features, TokenBatch
from tests.tiny_runs import config, save_target, strategy


def run(
    target: Path, text: Path, out: Path, /, *, resume: bool = False, observers=(), chosen=None, **changes
):
    settings = config(target, text, chosen=chosen, **changes)
    return train(settings.strategy, config=settings, out=out, resume=resume, observers=observers)


def files(checkpoint: Path) -> dict[str, bytes]:
    return {name: (checkpoint / name).read_bytes() for name in ("draft.safetensors", "optimizer.safetensors")}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_six_steps_equal_three_and_three_more_after_a_resume(target, text, tmp_path, optimizer):
    whole = run(target, text, tmp_path / "whole", train={"optimizer": optimizer})
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(checkpoint_path(tmp_path / "half", 6))
    resumed = run(target, text, tmp_path / "half", resume=True, train={"optimizer": optimizer})
    assert whole.step == resumed.step == 6
    assert files(checkpoint_path(tmp_path / "half", 6)) == files(checkpoint_path(tmp_path / "whole", 6))
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "half")]
    curves = [[(r["step"], r.get("loss")) for r in map(json.loads, log)] for log in logs]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_that_resumes_to_the_same_weights(target, text, tmp_path, number):
    run(target, text, tmp_path / "whole")

    def interrupt(record) -> None:
        if record.step == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(TrainingInterruptedError, match="after step 2 of 6") as stopped:
        run(target, text, tmp_path / "cut", observers=[interrupt])
    assert f"deepspec train --resume --out {tmp_path / 'cut'}" in str(stopped.value)
    assert signal.Signals(number).name in str(stopped.value)
    assert signal.getsignal(number) is before
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-000002"]
    run(target, text, tmp_path / "cut", resume=True)
    assert files(checkpoint_path(tmp_path / "cut", 6)) == files(checkpoint_path(tmp_path / "whole", 6))


@pytest.mark.parametrize(("step", "way_on"), [(4, "--resume --out"), (6, "is complete.* deepspec eval")])
def test_a_signal_during_a_validation_ends_the_run_there(target, text, tmp_path, monkeypatch, step, way_on):
    def interrupted(validation: Validation, trainer: Trainer) -> ValidationResult:
        os.kill(os.getpid(), signal.SIGINT)
        return ValidationResult(1.0, None)

    monkeypatch.setattr(Validation, "measure", interrupted)
    out = tmp_path / "cut"
    with pytest.raises(TrainingInterruptedError, match=f"SIGINT after step {step} of 6.*{way_on}"):
        run(target, text, out, train={"validate_every": step})
    assert checkpoints(out)[-1] == checkpoint_path(out, step)


def test_a_signal_in_the_last_step_still_ends_as_an_interruption(target, text, tmp_path):
    def interrupt(record) -> None:
        if record.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterruptedError, match="SIGTERM after step 6 of 6.*training is complete"):
        run(target, text, tmp_path / "cut", observers=[interrupt])
    assert load(tmp_path / "cut", device="cpu").step == 6


def test_a_run_without_a_checkpoint_resumes_from_the_start(target, text, tmp_path):
    run(target, text, tmp_path / "whole")
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "bare")
    assert run(target, text, tmp_path / "bare", resume=True).step == 6
    assert files(checkpoint_path(tmp_path / "bare", 6)) == files(checkpoint_path(tmp_path / "whole", 6))


def test_a_finished_run_resumes_to_itself(target, text, tmp_path):
    run(target, text, tmp_path / "run")
    seen = []
    assert run(target, text, tmp_path / "run", resume=True, observers=[seen.append]).step == 6
    assert seen == []


def test_accumulation_changes_no_result(tmp_path, text):
    exact = save_target(tmp_path / "target", dtype=torch.float64)
    weights = []
    for parts in (1, 2, 3):
        made = run(
            exact,
            text,
            tmp_path / str(parts),
            train={"accumulation": parts, "optimizer": "adamw"},
            target={"dtype": "float64"},
        )
        weights.append(made.parts.modules().state_dict())
    for name, tensor in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(tensor, other[name], rtol=1e-9, atol=1e-9)


def test_training_raises_the_expected_accepted_length_and_validates_by_decoding(target, text, tmp_path):
    records = []
    run(
        target,
        text,
        tmp_path / "run",
        observers=[records.append],
        train={"num_steps": 40, "validate_every": 40, "learning_rate": 0.02, "checkpoint_every": 40},
    )
    assert [record.step for record in records] == list(range(1, 41))
    assert records[-1].loss < records[0].loss
    assert records[-1].expected_accepted_length > records[0].expected_accepted_length + 0.1
    assert set(records[0].terms) == {"soft_ce", "l1", "confidence"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(2, 41, 2))
    (validation,) = [line for line in lines if line["kind"] == "validation"]
    # On this text the drafter does about as well in real decoding as on held-out text, and far from chance.
    assert validation["expected_accepted_length"] > 1.1
    assert validation["accepted_length"] >= 1.0


def test_cross_entropy_alone_trains_and_measures_when_it_logs(target, text, tmp_path):
    records = []
    made = run(target, text, tmp_path / "run", chosen=strategy("dflash"), observers=[records.append])
    assert made.config.strategy.name == "dflash"
    assert list(records[0].terms) == ["ce"]
    measured = [record.expected_accepted_length for record in records]
    assert measured[0] > 1.0
    assert measured[1] != measured[0]
    assert measured[2] == measured[1]


def test_bfloat16_keeps_float32_master_weights(target, text, tmp_path):
    made = run(target, text, tmp_path / "run", train={"precision": "bfloat16"})
    assert {tensor.dtype for tensor in made.parts.modules().state_dict().values()} == {torch.float32}
    exact = run(target, text, tmp_path / "exact")
    pairs = zip(made.parts.modules().parameters(), exact.parts.modules().parameters(), strict=True)
    assert any(not one.equal(other) for one, other in pairs)


def test_the_target_runs_in_its_own_type_while_the_drafter_trains_in_bfloat16(
    target, text, tmp_path, monkeypatch
):
    seen = set()

    def watch(name: str) -> None:
        method = getattr(Target, name)

        def watched(self: Target, *arguments):
            found = method(self, *arguments)
            with torch.autocast("cpu", enabled=False):
                alone = method(self, *arguments)
            torch.testing.assert_close(tensors(found), tensors(alone), rtol=0, atol=0)
            seen.add(name)
            return found

        monkeypatch.setattr(Target, name, watched)

    def tensors(found: Features | torch.Tensor) -> list[torch.Tensor]:
        return [found.tapped, found.last_hidden] if isinstance(found, Features) else [found]

    watch("features")
    watch("logits")
    run(target, text, tmp_path / "run", train={"precision": "bfloat16", "num_steps": 1})
    assert seen == {"features", "logits"}


def test_a_bfloat16_target_trains_validates_and_gives_parts_in_its_own_type(target, text, tmp_path):
    made = run(
        target,
        text,
        tmp_path / "run",
        target={"dtype": "bfloat16"},
        train={"validate_every": 3},
    )
    assert {tensor.dtype for tensor in made.parts.modules().state_dict().values()} == {torch.bfloat16}
    saved = load(tmp_path / "run", device="cpu")
    for name, tensor in made.parts.modules().state_dict().items():
        assert tensor.equal(saved.parts.modules().state_dict()[name]), name


def test_a_start_from_the_target_that_cannot_be_is_refused_only_when_asked_for(target, text, tmp_path):
    wide = strategy(drafter={"intermediate_size": 24})
    run(target, text, tmp_path / "null", chosen=wide)
    with pytest.raises(ConfigError, match="init_from_target"):
        run(target, text, tmp_path / "true", chosen=wide, train={"init_from_target": True})
    assert not (tmp_path / "true").exists()


def test_a_loss_that_is_not_a_number_stops_and_names_the_step(target, text, tmp_path, monkeypatch):
    calls = []
    original = Trainer.step

    def poisoned(self: Trainer, number: int, *, measure: bool):
        calls.append(number)
        if number == 4:
            with torch.no_grad():
                next(self.modules.parameters()).fill_(float("nan"))
        return original(self, number, measure=measure)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(TrainingError, match=r"loss of step 5 is nan.*step-000003"):
        run(target, text, tmp_path / "run")
    assert calls == [0, 1, 2, 3, 4]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000003"]


@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(target, text, tmp_path, monkeypatch, what):
    out = tmp_path / "run"
    run(target, text, tmp_path / "whole")

    def fill(record) -> None:
        if record.step == 5 and what == "log":
            (out / "log.jsonl").rename(tmp_path / "log.jsonl")
            (out / "log.jsonl").symlink_to("/dev/full")
        elif record.step == 5:
            monkeypatch.setattr(checkpoint_module, "save_file", lambda *_, **__: fail_to_write())

    def fail_to_write() -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(ResourceError) as raised:
        run(target, text, out, observers=[fill])
    for words in ("cannot be written", "No space left", "step-000003", f"--resume --out {out}"):
        assert words in str(raised.value)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000003"]
    monkeypatch.undo()
    if what == "log":
        (tmp_path / "log.jsonl").replace(out / "log.jsonl")
    run(target, text, out, resume=True)
    assert files(checkpoint_path(out, 6)) == files(checkpoint_path(tmp_path / "whole", 6))


def exhausted(*arguments: object, **options: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_that_runs_out_in_validation_names_the_last_checkpoint(target, text, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "expected_accepted_length", exhausted)
    with pytest.raises(ResourceError, match=r"validating after step 4.*step-000003.*sequences_per_step"):
        run(target, text, tmp_path / "run", train={"validate_every": 4})


def test_memory_that_runs_out_names_the_knobs(target, text, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", exhausted)
    with pytest.raises(ResourceError) as raised:
        run(target, text, tmp_path / "run")
    for knob in (
        "anchors_per_sequence (now 5)",
        "sequences_per_step (now 3)",
        "accumulation (now 1)",
        "step 1",
    ):
        assert knob in str(raised.value)


def test_an_error_that_is_not_about_memory_is_not_hidden(target, text, tmp_path, monkeypatch):
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run(target, text, tmp_path / "run")


def test_a_folder_with_another_run_or_other_files_is_refused_untouched(target, text, tmp_path):
    run(target, text, tmp_path / "run", train={"num_steps": 1})
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(CheckpointError, match="already holds a run"):
        run(target, text, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        run(target, text, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_resuming_with_another_configuration_names_the_keys(target, text, tmp_path):
    run(target, text, tmp_path / "run", train={"num_steps": 1})
    with pytest.raises(CheckpointError) as raised:
        run(target, text, tmp_path / "run", resume=True, train={"num_steps": 2, "learning_rate": 0.5}, seed=3)
    message = str(raised.value)
    for key in ("train.num_steps", "train.learning_rate", "seed"):
        assert key in message
    assert "train.optimizer" not in message


def test_where_it_runs_and_how_it_is_measured_may_change_on_resume(target, text, tmp_path):
    run(target, text, tmp_path / "run", train={"num_steps": 1})
    other = {"target": {"device": "cpu"}, "eval": {"batch": 3}}
    assert run(target, text, tmp_path / "run", resume=True, train={"num_steps": 1}, **other).step == 1


def test_resuming_with_other_target_weights_is_refused(target, text, tmp_path):
    own = shutil.copytree(target, tmp_path / "target")
    run(own, text, tmp_path / "run", train={"num_steps": 3, "checkpoint_every": 1})
    shutil.rmtree(checkpoint_path(tmp_path / "run", 3))
    save_target(own, seed=1)
    with pytest.raises(CheckpointError, match="fingerprint"):
        run(own, text, tmp_path / "run", resume=True, train={"num_steps": 3, "checkpoint_every": 1})


BAD_INPUT = {
    "unknown term": ({"chosen": {"objective": {"terms": {"cee": 1.0}}}}, ConfigError, "did you mean 'ce'"),
    "no confidence": ({"chosen": {"head": {"confidence": "none"}}}, ConfigError, "head.confidence=linear"),
    "last layer": (
        {"chosen": {"drafter": {"type": "dflash", "target_layers": [3]}}},
        ConfigError,
        "never the last",
    ),
    "unknown part": ({"chosen": {"verifier": "tokem"}}, ConfigError, "did you mean 'token'"),
    "mask in text": ({"chosen": {"drafter": {"mask_token_id": 83}}}, DataError, "meaning of its own"),
    "long rows": ({"data": {"sequence_length": 4096}}, ConfigError, "256"),
    "no model": ({"target": {"name": "/nowhere/at/all"}}, DeepSpecError, "/nowhere/at/all"),
    "no data": ({"data": {"paths": ["/nowhere.jsonl"]}}, DataError, "/nowhere.jsonl"),
    "no device": ({"device": "cuda:99"}, ConfigError, "cuda:99"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_written(target, text, tmp_path, case):
    changes, error, words = BAD_INPUT[case]
    chosen = strategy(**changes["chosen"]) if "chosen" in changes else None
    rest = {key: value for key, value in changes.items() if key != "chosen"}
    with pytest.raises(error, match=words):
        run(target, text, tmp_path / "run", chosen=chosen, **rest)
    assert list(tmp_path.iterdir()) == []


def test_resuming_what_is_no_run_is_refused(target, text, tmp_path):
    with pytest.raises(CheckpointError, match="no run folder"):
        run(target, text, tmp_path / "nothing", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_observes_each_step_and_registers_an_objective_term(target, text, tmp_path, monkeypatch):
    class Overlap(ObjectiveTerm):
        """-log of the acceptance."""

        name = "overlap"

        def loss(self, rows: GradedRows) -> torch.Tensor:
            return -torch.log1p(-rows.distance / 2)

    steps: list[int] = []

    class Plugin:
        @hookimpl
        def deepspec_step_trained(self, record) -> None:
            steps.append(record.step)

        @hookimpl
        def deepspec_parts(self):
            return [Overlap]

    def manager() -> pluggy.PluginManager:
        made = create_plugin_manager()
        register(made, Plugin(), name="watcher")
        return made

    monkeypatch.setattr(session_module, "create_plugin_manager", manager)
    chosen = strategy("dflash", objective={"terms": {"overlap": 1.0}})
    records = []
    run(target, text, tmp_path / "run", chosen=chosen, observers=[records.append], train={"num_steps": 3})
    assert steps == [1, 2, 3]
    assert list(records[0].terms) == ["overlap"]


def test_text_is_checked_for_what_the_drafter_reserves_whatever_its_options_are(
    target, text, tmp_path, monkeypatch
):
    class Reserving(DFlashDrafter):
        name = "reserving"

        @property
        def reserved_token_ids(self) -> tuple[int, ...]:
            return (258, 66)  # 66 is the byte "c"

    monkeypatch.setattr(session_module, "create_plugin_manager", lambda: with_parts(Reserving))
    with pytest.raises(DataError, match="uses the token 'c' .id 66.*meaning of its own"):
        run(target, text, tmp_path / "run", chosen=strategy("dflash", drafter="reserving"))


def with_parts(*parts: type) -> pluggy.PluginManager:
    """The installed plugins and one more, ``other``, with these parts."""
    manager = create_plugin_manager()
    register(manager, SimpleNamespace(deepspec_parts=hookimpl(lambda: parts)), name="other")
    return manager


def test_two_objective_terms_of_one_name_are_refused_and_both_plugins_named(target):
    loaded = load_target(TargetConfig(name=str(target)))
    parts = strategy("dflash").build(loaded.info)
    with pytest.raises(PluginError, match=r"objective 'ce' is registered twice, by '\w+' .* and '\w+'"):
        make_objective(parts, loaded, with_parts(CrossEntropy))


def test_default_folders_are_named_by_strategy_and_time(target, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = config(target, text, train={"num_steps": 1})
    first = train(settings.strategy, config=settings)
    second = train(settings.strategy, config=settings)
    assert first.path != second.path
    assert first.path.parent == Path("runs")
    assert first.path.name.startswith("dspark-20")


def test_expected_accepted_length_on_the_targets_own_text_is_what_decoding_gains(target, text, tmp_path):
    made = run(target, text, tmp_path / "run", train={"num_steps": 60, "learning_rate": 0.02})
    prompts = [tuple(made.target.tokenizer("document 3: the cat")["input_ids"])] * 16
    params = [SamplingParams(max_tokens=60, seed=seed, ignore_stop=True) for seed in range(16)]
    own = Engine(made.target, None, max_batch=16).run(prompts, params)
    gained: list[int] = []

    def observe(record) -> None:
        gained.extend(request.accepted + 1 for request in record.requests)

    parts = redecoded(made.parts, verifier="token")  # whose chances the expectation multiplies
    Engine(made.target, parts, max_batch=16, observers=[observe]).run(prompts, params)
    tokens = torch.tensor([[*done.prompt, *done.tokens] for done in own])
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    batch = TokenBatch(tokens, torch.zeros_like(tokens), positions, positions >= len(prompts[0]))
    settings = config(target, text, train={"anchors_per_sequence": 60})
    trainer = Trainer(
        made.parts,
        made.target,
        objective=make_objective(made.parts, made.target, create_plugin_manager()),
        sampler=None,
        config=settings,
        device=torch.device("cpu"),
    )
    expected, decoded = trainer.expected_accepted_length([batch]), sum(gained) / len(gained)
    assert decoded > 1.3
    # Rounds do not start evenly over positions, and there are some 600 of them: 0.1 is about 3 deviations.
    assert abs(expected - decoded) < 0.1
