"""Loading a target by name: each way in which it cannot be had is one line that says which."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers.utils.hub
from huggingface_hub import errors
from safetensors.torch import load_file

from deepspec.errors import TargetError
from deepspec.target import ModelSource
from deepspec.target import load as load_module
from tests.command_line import Ran, run
from tests.tiny_models import make
from tests.tiny_runs import save_prompts, save_target, save_text

MODELING = """
from transformers import Qwen3Config, Qwen3ForCausalLM


class RenamedConfig(Qwen3Config):
    model_type = "renamed"


class RenamedForCausalLM(Qwen3ForCausalLM):
    config_class = RenamedConfig
"""
SMALL = {
    "data.sequence_length": 64,
    "data.held_out_fraction": 0.2,
    "drafter.num_layers": 1,
    "drafter.num_target_layers": 1,
    "train.sequences_per_step": 2,
    "train.anchors_per_sequence": 3,
}


def train(folder: Path, target: str | Path, *flags: str) -> Ran:
    """One step of training for ``target``, without an evaluation."""
    text = save_text(folder / "text.jsonl")
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    what = ("--strategy", "dflash", "--target", target, "--data", text, "--steps", "1", "--no-eval")
    return run("train", *what, "--out", folder / "run", "--device", "cpu", *sets, *flags)


def only_line(ran: Ran) -> str:
    """The one line of a command that was refused."""
    assert (ran.code, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def own_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target's folder whose model is defined by a Python file in it."""
    folder = save_target(tmp_path_factory.mktemp("own-code") / "renamed")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "renamed",
        "architectures": ["RenamedForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_renamed.RenamedConfig",
            "AutoModelForCausalLM": "modeling_renamed.RenamedForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_renamed.py").write_text(MODELING)
    return folder


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies a model's code below its cache before it runs it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_a_targets_own_code_runs_only_when_asked_for(own_code: Path, tmp_path: Path) -> None:
    refused = train(tmp_path, own_code)
    assert "needs its own code to load; pass --trust-remote-code" in only_line(refused)
    assert not (tmp_path / "run").exists()
    trained = train(tmp_path, own_code, "--trust-remote-code")
    assert trained.code == 0, trained.err


def test_a_run_folder_cannot_have_its_targets_code_run(own_code: Path, tmp_path: Path) -> None:
    assert train(tmp_path, own_code, "--trust-remote-code").code == 0
    task = f"mine={save_prompts(tmp_path / 'prompts.jsonl', ['the cat'])}"
    generate = ("generate", tmp_path / "run", "--prompt", "the cat", "--max-tokens", "2")
    evaluate = ("eval", tmp_path / "run", "--task-file", task, "--max-tokens", "2")
    resume = ("train", "--resume", "--out", tmp_path / "run", "--no-eval", "--device", "cpu")
    for command in (generate, evaluate, resume):
        assert "pass --trust-remote-code" in only_line(run(*command))
        trusted = run(*command, "--trust-remote-code")
        assert trusted.code == 0, trusted.err


def hub_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    """An error as the hub's client raises it."""
    return kind("many\nlines", response=SimpleNamespace(headers={}, request=None))


FAILURES = {
    "gated": (hub_error(errors.GatedRepoError), "is gated; request access on its page"),
    "missing": (hub_error(errors.RepositoryNotFoundError), "was not found on the hub; check the spelling"),
    "revision": (hub_error(errors.RevisionNotFoundError), "has no revision 'v9'; give --target-revision"),
    "unreachable": (
        errors.LocalEntryNotFoundError("many\nlines"),
        "at revision 'v9' is not in the local cache, and the hub cannot be reached",
    ),
    "server": (hub_error(errors.HfHubHTTPError), "cannot be loaded: There was a specific connection error"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_the_hub_refuses_is_one_line_that_says_why(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, words = FAILURES[case]

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(transformers.utils.hub, "hf_hub_download", fail)
    monkeypatch.setattr(transformers.utils.hub, "snapshot_download", fail)
    monkeypatch.setattr(load_module, "is_offline_mode", lambda: False)
    refused = train(tmp_path, "Owner/Model-1B", "--target-revision", "v9")
    assert only_line(refused).startswith(f"error: target 'Owner/Model-1B' {words}")


def test_offline_what_is_not_cached_is_one_line_that_names_the_variable(tmp_path: Path) -> None:
    line = only_line(train(tmp_path, "Owner/Model-1B"))
    assert "is not in the local cache, and HF_HUB_OFFLINE is set; give a local folder" in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./absent", "does not exist; give a folder"),
        ("some/deep/folder", "is neither a folder here nor a hub id"),
        ("", "target.name"),
    ],
)
def test_a_name_that_can_be_neither_folder_nor_hub_id_is_said(name: str, words: str, tmp_path: Path) -> None:
    assert words in only_line(train(tmp_path, name))


@pytest.mark.parametrize("flag", ["--device", "--target-device"])
@pytest.mark.parametrize("name", ["mps", "cuda:1"])
def test_a_device_that_is_not_here_is_one_line(flag: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    refused = run("generate", "--prompt", "a", "--device", "cpu", flag, name)
    assert only_line(refused) == (
        f"error: device {name!r} is not on this machine; available: cpu (1), cuda (1)"
    )


def test_the_target_may_be_placed_by_name() -> None:
    shown = run("generate", "--prompt", "a", "--max-tokens", "2", "--device", "cpu", "--target-device", "cpu")
    assert shown.code == 0, shown.err


def draft_source(name: str | Path, revision: str | None = None) -> ModelSource:
    """A model as a drafter that is one would ask for it."""
    words = {"revision_key": "drafter.revision", "own_code": "choose another", "too_big": "a smaller one"}
    return ModelSource("draft model", str(name), revision, **words)


def test_another_model_is_loaded_in_its_own_float_type_and_says_what_it_is(tmp_path: Path) -> None:
    folder = save_target(tmp_path / "model", dtype=torch.bfloat16)
    source = draft_source(folder)
    assert source.load_model("auto").dtype == torch.bfloat16
    assert len(source.load_tokenizer()) == 259
    unreadable = f"draft model '{folder}' cannot be read: the folder has no"
    (folder / "config.json").unlink()
    with pytest.raises(TargetError, match=f"{unreadable} config.json"):
        source.load_model("auto")
    make("llama").config.save_pretrained(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TargetError, match=f"{unreadable} tokenizer"):
        source.load_tokenizer()


def test_another_models_errors_name_its_own_settings(own_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match="needs its own code to load; choose another"):
        draft_source(own_code).load_model("auto")

    def fail(*arguments: object, **options: object) -> None:
        raise hub_error(errors.RevisionNotFoundError)

    monkeypatch.setattr(transformers.utils.hub, "hf_hub_download", fail)
    with pytest.raises(
        TargetError, match="draft model 'Owner/Model-1B' has no revision 'v9'; give drafter.revision"
    ):
        draft_source("Owner/Model-1B", "v9").load_model("auto")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = save_target(tmp_path / "model")
    (weights,) = folder.glob("*.safetensors")
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(TargetError, match="cannot be read: .*safetensors"):
        draft_source(folder).load_model("auto")
