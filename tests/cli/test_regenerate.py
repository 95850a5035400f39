"""``deepspec data regenerate`` as typed: by the engine and by a server, into what training reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.command_line import run
from tests.regenerate.conftest import save_source, server
from tests.regenerate.misbehaving import Misbehaving
from tests.regenerate.targets import TOP_K, writing_target
from tests.tiny_runs import config

__all__ = ["server"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    writing_target(folder, torch.float32)
    return folder


def test_what_the_target_wrote_is_prepared_and_trained_on(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("source.jsonl"))
    words = ["data", "regenerate", "source.jsonl", "--target", target, "--out", "new.jsonl"]
    words += ["--max-tokens", "12", "--top-k", str(TOP_K), "--device", "cpu"]
    ran = run(*words, "--limit", "9")
    assert (ran.code, ran.err) == (0, "")
    assert re.match(r"samples written: \d \(\d+ tokens, \d of them cut off\)\n", ran.out)
    assert ran.out.endswith("check and split it: deepspec data prepare new.jsonl --out prepared\n")
    found = run(*words, "--json").json
    assert (found["schema"], found["num_before"], found["num_failed"]) == (1, 9, 0)
    assert found["num_written"] + sum(found["left_out"].values()) == 31
    ran = run(
        "data", "prepare", "new.jsonl", "--target", target, "--out", "prepared", "--held-out", "0.2", "--json"
    )
    assert ran.code == 0, ran.err
    assert (ran.json["num_unusable"], ran.json["ignored_columns"]) == (0, ["provenance"])
    for data in ("prepared", "new.jsonl"):
        settings = config(target, Path(data), train={"num_steps": 2})
        Path("run.json").write_text(settings.model_dump_json(exclude={"out"}))
        ran = run("train", "--config", "run.json", "--out", f"on {data}", "--no-eval", "--json")
        assert ran.code == 0, ran.err


def test_samples_that_failed_are_counted_and_the_exit_code_says_so(
    server: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("source.jsonl"), 8)
    server.fault = lambda body, before: "500" if body.get("prompt") == "prompt 2" else None
    words = ["data", "regenerate", "source.jsonl", "--server", server.url, "--out", "new.jsonl"]
    words += ["--retries", "0", "--body", "chat_template_kwargs.enable_thinking=false"]
    ran = run(*words)
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.splitlines()[1:] == [
        f"FAILED: 1, the first: {server.url}/completions: 500: out of luck",
        "why is in new.jsonl.left-out; the same command tries those that failed again",
    ]
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    server.fault = lambda body, before: None
    ran = run(*words)
    assert ran.code == 0
    assert re.match(r"samples written: 1 \(5 tokens.*\), done before: 7\n", ran.out)
    assert len(Path("new.jsonl").read_text().splitlines()) == 8


def test_what_the_server_refuses_is_one_line(server: Misbehaving, tmp_path: Path) -> None:
    source = save_source(tmp_path / "source.jsonl", 8)
    words = ["data", "regenerate", source, "--server", server.url, "--out", tmp_path / "new.jsonl"]
    ran = run(*words, "--model", "tyni")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: {server.url} serves no model 'tyni'; known: tiny; did you mean 'tiny'?\n"
    server.models_fault = "401"
    ran = run(*words)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "who are you?; the API key is read from OPENAI_API_KEY, which is not set" in ran.err
    assert list(tmp_path.iterdir()) == [source]
