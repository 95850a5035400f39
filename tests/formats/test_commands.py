"""``eval --draft``, ``inspect`` and ``export``, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors.torch import load_file

import deepspec
from deepspec.runs import store_evaluation
from tests.command_line import run
from tests.formats import foreign as f
from tests.tiny_models import VOCAB as SMALL
from tests.tiny_runs import VOCAB, config, save_prompts, save_target, save_text, strategy

SHORT = ("--num-prompts", "2", "--max-tokens", "4", "--batch", "2", "--json")


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def trained(target, tmp_path_factory) -> Path:
    """A DSpark run of six steps, with a stored evaluation and calibration."""
    folder = tmp_path_factory.mktemp("runs")
    settings = config(target, save_text(folder / "text.jsonl"))
    path = deepspec.train(settings.strategy, config=settings, out=folder / "run").path
    length = {"mean": 2.5, "ci95": [2.25, 2.75]}
    tasks = {"mine": {"accepted_length": 2.5, "ci95": [2.25, 2.75], "num_prompts": 8}}
    report = {
        "accepted_length": length,
        "tasks": tasks,
        "num_prompts": 8,
        "num_rounds": 1234,
        "temperature": 1.0,
    }
    store_evaluation(path, {**report, "draft_length": 3, "verifier": "block", "device": "a CPU"})
    state = next(path.glob("checkpoints/*6/state.json"))
    fitted = {
        "temperatures": [1.5, 1.0, 2.0],
        "ece_before": [0.1] * 3,
        "ece_after": [0.01] * 3,
        "num_rounds": 700,
    }
    part = {"type": "sequential", "temperatures": [1.5, 1.0, 2.0]}
    found = {
        "strategy": {"calibrator": part, "head": {"confidence": "linear"}},
        "confidence": "linear",
        **fitted,
    }
    state.write_text(json.dumps({**json.loads(state.read_text()), "calibration": found}))
    return path


@pytest.fixture
def prompts(tmp_path) -> str:
    return f"mine={save_prompts(tmp_path / 'prompts.jsonl', ['the cat', 'a dog'])}"


def lengths(ran) -> tuple[object, object]:
    report = ran.json
    return report["accepted_length"], report["counts"]


@pytest.mark.parametrize("to", ["deepspec", "speculators", "sglang", "vllm", "modelopt"])
def test_an_export_evaluates_as_its_run(to, target, trained, prompts, tmp_path):
    """The greedy rounds of a drafter do not depend on the layout that it lies in."""
    out = tmp_path / "out"
    exported = run("export", trained, "--to", to, "--out", out, "--json")
    assert exported.code == 0, exported.err
    common = ("--tasks", prompts, "--temperature", "0", *SHORT)
    evaluated = run("eval", "--draft", out, "--target", target, *common)
    assert evaluated.code == 0, evaluated.err
    assert lengths(evaluated) == lengths(run("eval", trained, *common))
    assert evaluated.json["strategy"] == "dspark"


def test_an_export_comes_with_a_card_the_schedulers_files_and_the_lines_that_serve_it(
    target, trained, tmp_path
):
    curve = {"schema": 1, "verify_tokens": [1, 8], "steps_per_s": [50.0, 40.0]}
    (tmp_path / "curve.json").write_text(json.dumps(curve))
    out = tmp_path / "out"
    made = run(
        "export", trained, "--to", "sglang", "--out", out, "--target-name", "some/target",
        "--dtype", "bfloat16", "--sps", tmp_path / "curve.json", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert made.json["files"] == ["README.md", "config.json", "model.safetensors", "sps.json", "sts.json"]
    line = (
        f"python -m sglang.launch_server --model-path some/target --speculative-algorithm DSPARK "
        f"--speculative-draft-model-path {out} --speculative-dspark-block-size 3 "
        "--speculative-num-draft-tokens 4 "
        f"--speculative-dspark-confidence-sts-path {out}/sts.json --speculative-dspark-sps-table-path "
        f"{out}/sps.json"
    )
    assert made.json["commands"]["sglang"] == line
    assert json.loads((out / "sts.json").read_text()) == {
        "temperatures": [1.5, 1.0, 2.0],
        "ece_before": [0.1] * 3,
        "ece_after": [0.01] * 3,
        "dataset": "held-out rounds",
        "num_samples": 700,
    }
    assert json.loads((out / "sps.json").read_text())["sample_batch_tokens"] == [1, 8]
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    card = (out / "README.md").read_text()
    assert card.startswith("---\nbase_model: some/target\n")
    assert "τ = 2.500 tokens a round, bonus token included (95 % interval 2.250 to 2.750; mine 2.50)" in card
    assert "trained for 6 steps" in card
    assert f"\n{line}\n" in card


def test_a_layout_that_cannot_hold_a_drafter_says_why_and_what_can(trained, tmp_path):
    other = run("export", trained, "--to", "deepspek", "--out", tmp_path / "o")
    assert other.code == 2
    assert other.err == (
        "error: --to deepspek: no layout is called so; known: deepspec, modelopt, sglang, speculators, vllm; "
        "did you mean 'deepspec'?\n"
    )
    taken = run("export", trained, "--to", "vllm", "--out", trained)
    assert (taken.code, taken.err) == (
        2, f"error: {trained} exists and is not an empty folder; choose another --out\n",
    )  # fmt: skip
    assert run("export", trained, "--to", "vllm", "--out", tmp_path / "o", "--dtype", "int8").code == 2
    assert not (tmp_path / "o").exists()


def test_inspect_says_what_breaks_silently_and_who_loads_it(tmp_path):
    target = f.tiny_target()
    found = run("inspect", f.speculators_dflash(tmp_path / "a", target, "vanilla", vocab=40), "--json").json
    facts = found["facts"]
    assert facts["layer ids"] == "1, 3, counted from 1: outputs of decoder layers 0, 2, from 0"
    assert facts["taps"] == "2"
    assert facts["slot layout"].endswith("(sample_from_anchor true); 4 draft tokens")
    assert facts["mask token"] == str(SMALL - 1)
    assert facts["vocabulary"] == "40 of 97 tokens; d2t holds token id - row, as t2d says"
    assert facts["head"] == "markov of rank 5, a trained confidence"
    assert found["layout"] == "speculators-dflash"
    assert [found["engines"][name]["loads"] for name in ("vllm", "sglang")] == [True, False]
    shown = run("inspect", f.deepspec_eagle3(tmp_path / "b", target))
    assert shown.code == 0
    assert shown.out.startswith("deepspec-eagle3, by architectures Qwen3Eagle3Model\n")
    assert "sglang  no" in shown.out
    nowhere = run("inspect", "nowhere")
    assert nowhere.code == 2
    assert nowhere.err.startswith("error: checkpoint 'nowhere' ")


def test_a_checkpoint_is_given_alone_and_its_target_has_to_fit(target, trained, tmp_path):
    folder = f.deepspec_dspark(tmp_path, f.tiny_target())
    both = run("eval", trained, "--draft", folder)
    assert both.code == 2
    assert (
        both.err == f"error: RUN {str(trained)!r} and --draft {str(folder)!r} were given; give one of them\n"
    )
    wrong = run("eval", "--draft", folder, "--target", target)
    assert wrong.code == 2
    assert f"has vocabulary {VOCAB} instead of {SMALL}" in wrong.err
    fixed = run("eval", "--draft", folder, "--target", target, "--set", "head.rank=3")
    assert fixed.code == 2


class Hub(HfApi):
    """Takes uploads and remembers them."""

    calls: list[tuple[str, object]] = []  # noqa: RUF012 - one for the one test

    def whoami(self, *args, **kwargs):
        return {"name": "me"}

    def create_repo(self, repo_id, **kwargs):
        self.calls.append(("create", repo_id, kwargs["private"]))

    def upload_folder(self, *, repo_id, folder_path, **kwargs):
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
        return f"https://hub/{repo_id}"


def test_only_push_uploads_and_without_a_login_nothing_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("deepspec.formats.push.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    plain = run("export", trained, "--to", "speculators", "--out", tmp_path / "a")
    assert (plain.code, Hub.calls) == (0, [])
    pushed = run(
        "export", trained, "--to", "speculators", "--out", tmp_path / "b", "--push", "me/it", "--private"
    )
    assert pushed.code == 0, pushed.err
    assert Hub.calls == [
        ("create", "me/it", True), ("upload", "me/it", ["README.md", "config.json", "model.safetensors"]),
    ]  # fmt: skip
    assert "uploaded: https://hub/me/it" in pushed.out
    bad = run("export", trained, "--to", "speculators", "--out", tmp_path / "c", "--push", "it")
    assert (bad.code, bad.err) == (2, "error: --push it: give a hub name, OWNER/NAME\n")

    def nobody(self, *args, **kwargs):
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(Hub, "whoami", nobody)
    refused = run("export", trained, "--to", "speculators", "--out", tmp_path / "c", "--push", "me/it")
    assert (refused.code, refused.err) == (
        2, "error: --push me/it: nobody is logged in to the hub; run `hf auth login`\n",
    )  # fmt: skip
    assert not (tmp_path / "c").exists()


def test_a_drafter_whose_anchor_slot_drafts_goes_where_that_can_be_said(target, tmp_path):
    settings = config(
        target, save_text(tmp_path / "text.jsonl"), chosen=strategy("dflash"), train={"num_steps": 1}
    )
    plain = deepspec.train(settings.strategy, config=settings, out=tmp_path / "run").path
    refused = run("export", plain, "--to", "vllm", "--out", tmp_path / "out")
    assert refused.code == 2
    assert refused.err == (
        "error: --to vllm: vllm cannot load this drafter: its DFlash takes slot 0 for the anchor, and here "
        "slot 0 "
        "drafts\n"
    )
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    assert run("export", plain, "--to", "speculators", "--out", tmp_path / "out").code == 0
