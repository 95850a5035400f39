"""Live evaluation: the numbers of `deepspec eval`, the best checkpoint, early stopping, samples."""

from __future__ import annotations

import json
import logging
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from deepspec.choice import chosen_state
from deepspec.config import RunConfig
from deepspec.errors import CheckpointError, ConfigError
from deepspec.evaluate.acceptance import PromptLength
from deepspec.runs import Run, checkpoint_path, checkpoints, load
from deepspec.train import train
from deepspec.train.live import LiveEvaluations
from deepspec.train.logs import RunLog
from deepspec.train.trainer import Trainer
from deepspec.train.validation import Validation, ValidationResult
from tests import command_line
from tests.features.stored import settings as with_features
from tests.features.stored import write
from tests.tiny_runs import config

SMALL = {"validate_every": 2, "validate_prompts": 5, "validate_tokens": 12, "keep_checkpoints": 1}


def go(chosen: RunConfig, out: Path, *, resume: bool = False, observers: Any = ()) -> Run:
    return train(chosen.strategy, config=chosen, out=out, resume=resume, observers=observers)


def lines(out: Path, kind: str = "validation") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Accepted lengths that live evaluations find, by what they were before; steps 2, 4, 6."""
    taus = {2: 1.5, 4: 2.0, 6: 1.7}
    left = cycle(taus.values())
    monkeypatch.setattr(Validation, "measure", lambda *_: ValidationResult(1.0, next(left)))
    return taus


@pytest.mark.parametrize("changes", [{}, {"eval": {"temperature": 0.0, "batch": 2, "seed": 3}}])
def test_its_accepted_length_is_what_eval_measures_on_the_same_prompts_and_seeds(
    target: Path, text: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    go(config(target, text, train={**SMALL, "keep_checkpoints": 3, "checkpoint_every": 2}, **changes), out)
    for line in lines(out):
        words = ["--task-file", f"live={out / 'live-prompts.jsonl'}", "--max-tokens", "12", "--json"]
        found = command_line.run("eval", f"{out}@{line['step']}", *words, "--device", "cpu").json
        assert found["num_prompts"] == len(line["prompts"]) == 5
        assert found["accepted_length"]["mean"] == line["accepted_length"]
        assert found["num_rounds"] == sum(rounds for _, rounds in line["prompts"])


def test_the_best_checkpoint_is_kept_beside_the_last_and_is_what_a_run_means(
    target: Path, text: Path, tmp_path: Path, told: dict[int, float]
) -> None:
    out = tmp_path / "run"
    made = go(config(target, text, train=SMALL), out)
    assert [path.name for path in checkpoints(out)] == ["step-000004", "step-000006"]
    assert json.loads((out / "best.json").read_text()) == {
        "step": 4,
        "accepted_length": 2.0,
        "expected_accepted_length": 1.0,
    }
    by_name = {name: load(f"{out}{name}", device="cpu") for name in ("", "@best", "@4", "@last", "@6")}
    assert [run.step for run in by_name.values()] == [4, 4, 4, 6, 6]
    assert all(run.path == out for run in by_name.values())
    assert made.step == 4
    weights = by_name[""].parts.modules().state_dict()
    for name, tensor in made.parts.modules().state_dict().items():
        assert tensor.equal(weights[name])
    other = by_name["@last"].parts.modules().state_dict()
    assert any(not tensor.equal(other[name]) for name, tensor in weights.items())


def test_of_equal_ones_the_last_is_the_best_and_without_any_the_newest(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validation, "measure", lambda *_: ValidationResult(1.0, None))
    out = tmp_path / "run"
    go(config(target, text, train=SMALL), out)
    assert chosen_state(out)[1]["step"] == 6
    (out / "best.json").unlink()
    assert chosen_state(out)[1]["step"] == 6
    with pytest.raises(ConfigError, match=r"no best checkpoint.*run@last"):
        chosen_state(f"{out}@best")


def test_a_choice_that_there_is_not_says_what_there_is(
    target: Path, text: Path, tmp_path: Path, told: dict[int, float]
) -> None:
    out = tmp_path / "run"
    go(config(target, text, train=SMALL), out)
    with pytest.raises(ConfigError, match="no checkpoint of step 2; it has those of steps 4, 6"):
        load(f"{out}@2")
    with pytest.raises(ConfigError, match="behind @ stands best, last or a step, not 'first'"):
        load(f"{out}@first")
    with pytest.raises(CheckpointError, match="nowhere@last is no run folder"):
        load(tmp_path / "nowhere@last")


def test_a_start_from_a_run_takes_the_chosen_checkpoint(
    target: Path, text: Path, tmp_path: Path, told: dict[int, float]
) -> None:
    out = tmp_path / "run"
    go(config(target, text, train=SMALL), out)
    for choice, step in (("", 4), ("@last", 6)):
        begun = config(
            target, text, train={"init_from": f"{out}{choice}", "num_steps": 1, "validate_every": 9}
        )
        path = tmp_path / f"from{choice}"
        train(begun.strategy, config=begun.model_copy(update={"out": str(path)}))
        state = json.loads((checkpoint_path(path, 1) / "state.json").read_text())
        assert state["init_from"]["step"] == step


def test_a_damaged_best_checkpoint_is_said_and_the_newest_whole_one_taken(
    target: Path, text: Path, tmp_path: Path, told: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    go(config(target, text, train=SMALL), out)
    path = checkpoint_path(out, 4) / "draft.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one bit, of which safetensors itself knows nothing
    path.write_bytes(content)
    assert load(out, device="cpu").step == 6
    assert "step-000004/draft.safetensors is damaged" in caplog.text
    assert "step-000006, is used instead" in caplog.text
    with pytest.raises(CheckpointError, match=r"step-000004/draft\.safetensors is damaged.*run@STEP"):
        load(f"{out}@best")
    (out / "best.json").write_text("{")
    assert load(out, device="cpu").step == 6
    assert "best.json is damaged" in caplog.text


def evaluations(folder: Path, patience: int) -> LiveEvaluations:
    settings = RunConfig(strategy={"name": "x", "draft_length": 1, "drafter": "dflash"})
    folder.mkdir(exist_ok=True)
    return LiveEvaluations(
        folder, RunLog(folder, settings, first_step=0, advice=lambda: ""), patience=patience
    )


def found(*gained: int) -> ValidationResult:
    """Each prompt's gain in 10 rounds."""
    prompts = tuple(PromptLength(tokens, 10) for tokens in gained)
    return ValidationResult(1.0, sum(gained) / (10 * len(gained)), prompts)


def test_patience_counts_what_is_no_clear_gain_and_small_gains_add_up(tmp_path: Path) -> None:
    live = evaluations(tmp_path / "run", patience=2)
    first = (20, 30, 25, 28, 22, 26)
    noise = (23, 27, 26, 27, 23, 26)  # better in the mean, by chance
    steady = tuple(tokens + 1 for tokens in first)
    for step, gained in enumerate((first, noise, steady, noise), start=1):
        assert live.reason_to_stop is None
        live.add(step, found(*gained))
    assert live.reason_to_stop is None  # steady was a clear gain on the first, noise none on steady: one
    live.add(5, found(*first))
    reason = live.reason_to_stop
    assert reason is not None
    assert "the last 2 live evaluations were no clear gain on that of step 3 (train.patience=2)" in reason
    again = evaluations(tmp_path / "run", patience=2)
    assert again.reason_to_stop == reason
    assert evaluations(tmp_path / "run", patience=3).reason_to_stop is None


def test_training_stops_early_says_why_and_does_not_go_on(
    target: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    values = iter([found(20, 21), found(15, 16), found(14, 15)])
    monkeypatch.setattr(Validation, "measure", lambda *_: next(values))
    chosen = config(target, text, train={**SMALL, "num_steps": 20, "patience": 2, "checkpoint_every": 50})
    assert go(chosen, tmp_path / "run").step == 2
    assert "training stops after step 6 of 20: the last 2 live evaluations" in caplog.text
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000002", "step-000006"]
    steps: list[Any] = []
    assert go(chosen, tmp_path / "run", resume=True, observers=[steps.append]).step == 2
    assert steps == []


def test_decoded_samples_are_kept_as_lines_and_in_tensorboard(
    target: Path, text: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    go(config(target, text, train={**SMALL, "validate_prompts": 3}), out)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().split("\n")[:-1]]
    assert [one["step"] for one in samples] == [2, 2, 2, 4, 4, 4, 6, 6, 6]
    for one, (gained, rounds) in zip(
        samples, (pair for line in lines(out) for pair in line["prompts"]), strict=True
    ):
        assert "the cat" in one["prompt"]
        assert one["text"]
        assert one["accepted_length"] == gained / rounds
        assert len(one["rounds"]) == rounds
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    shown = events.Tensors("samples/text_summary")
    assert [one.step for one in shown] == [2, 4, 6]
    assert samples[0]["prompt"].split()[0] in shown[0].tensor_proto.string_val[0].decode()


def test_stored_features_decode_where_the_target_is_loaded_and_else_say_that_nothing_is(
    target: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chosen = with_features(target, text, tmp_path / "cache", train={**SMALL, "num_steps": 2})
    write(chosen)
    go(chosen, tmp_path / "head")
    assert [line["accepted_length"] for line in lines(tmp_path / "head")] == [None]
    assert "live evaluations decode nothing: the target's decoder layers are not loaded" in caplog.text
    whole = chosen.model_copy(update={"features": chosen.features.model_copy(update={"load_target": True})})
    made = go(whole, tmp_path / "whole")
    assert made.target.is_whole
    assert lines(tmp_path / "whole")[0]["accepted_length"] >= 1
    key = "expected_accepted_length"
    assert lines(tmp_path / "whole")[0][key] == lines(tmp_path / "head")[0][key]


def test_an_evaluation_that_was_cut_off_is_done_when_the_run_goes_on(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(target, text, train={**SMALL, "validate_every": 3})
    go(chosen, tmp_path / "whole")

    def broken(self: Trainer, batches: Any) -> float:
        raise RuntimeError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "expected_accepted_length", broken)
        with pytest.raises(RuntimeError, match="gone"):
            go(chosen, tmp_path / "cut")
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-000003"]
    go(chosen, tmp_path / "cut", resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for name in ("samples.jsonl", "best.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
