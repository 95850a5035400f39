"""Several processes under torchrun, over gloo: the same numbers as one; who fails is named, nobody hangs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepspec import distributed
from deepspec.config import EvalConfig
from deepspec.distributed import World
from deepspec.errors import ConfigError, DistributedError
from deepspec.evaluate import evaluate
from deepspec.runs import checkpoint_path, checkpoints
from deepspec.train import train
from tests.command_line import run as command
from tests.distributed_worker import run, settings
from tests.tiny_runs import save_prompts, save_target, save_text

ROOT = Path(__file__).resolve().parent.parent
THOROUGH = os.environ.get("DEEPSPEC_THOROUGH") == "1"
SIZES = (2, 4) if THOROUGH else (2,)
PROMPTS = ["the cat", "document 3: the", "sat on the mat. the cat", "mat", "on the mat the"]
LIMIT_S = 600


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def torchrun(size: int, *arguments: str | Path, **variables: str) -> Ended:
    """One launch of ``size`` processes of a thread each."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={size}",
        "-m",
    ]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Launch:
    """Where the runs of one launch lie, and what it said."""

    folder: Path
    size: int
    ended: Ended


@pytest.fixture(scope="module", params=SIZES)
def launch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    save_target(folder / "target", dtype=torch.float64)
    save_text(folder / "text.jsonl")
    save_sparse_text(folder / "sparse.jsonl")
    save_prompts(folder / "prompts.jsonl", PROMPTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPSPEC_HOME", str(folder / "home"))
        run(folder, "alone")
        run(folder, "alone-sparse", settings(folder, "sparse.jsonl"))
        ended = torchrun(request.param, "tests.distributed_worker", folder)
    assert ended.code == 0, ended.err
    return Launch(folder, request.param, ended)


def save_sparse_text(path: Path) -> None:
    """Chats whose prompts fill rows on their own, so that many rows have no anchor."""
    turns = [(f"{n} " * 30, "the cat sat on the mat") for n in range(12)]
    turns += [("the cat ", "sat on the mat. " * 6)]
    path.write_text("".join(json.dumps({"prompt": a, "response": b}) + "\n" for a, b in turns))


def tensors(folder: Path, name: str, step: int = 6) -> dict[str, torch.Tensor]:
    checkpoint = checkpoint_path(folder / name, step)
    found = load_file(checkpoint / "draft.safetensors")
    moments = load_file(checkpoint / "optimizer.safetensors")
    return {**found, **{f"optimizer/{key}": value for key, value in moments.items()}}


def losses(folder: Path, name: str) -> list[tuple[int, float | None]]:
    lines = (folder / name / "log.jsonl").read_text().splitlines()
    return [(line["step"], line.get("loss")) for line in map(json.loads, lines)]


def failures(launch: Launch, name: str) -> list[tuple[str, str]]:
    return [tuple(json.loads((launch.folder / f"{name}-{n}.json").read_text())) for n in range(launch.size)]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "alone"), [("ddp", "alone"), ("fsdp", "alone"), ("sparse", "alone-sparse")])
def test_weights_moments_and_losses_are_those_of_one_process(launch, name, alone):
    # float64; processes add up in another order, which AdamW's quotient of small numbers magnifies.
    torch.testing.assert_close(
        tensors(launch.folder, name), tensors(launch.folder, alone), rtol=1e-7, atol=1e-10
    )
    ours, theirs = losses(launch.folder, name), losses(launch.folder, alone)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours[:3]] == pytest.approx([loss for _, loss in theirs[:3]], rel=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(launch, name):
    resumed, whole = (tensors(launch.folder, run) for run in (f"{name}-resumed", name))
    assert all(resumed[key].equal(whole[key]) for key in whole.keys() | resumed.keys())
    assert losses(launch.folder, f"{name}-resumed") == losses(launch.folder, name)


@pytest.mark.thorough
def test_a_run_of_one_process_goes_on_in_several_and_back(launch, tmp_path):
    exact = tensors(launch.folder, "alone")
    torch.testing.assert_close(tensors(launch.folder, "alone-resumed"), exact, rtol=1e-7, atol=1e-10)
    shutil.copytree(launch.folder / "fsdp", tmp_path / "back")
    shutil.rmtree(checkpoint_path(tmp_path / "back", 6))
    chosen = settings(launch.folder, accumulation=2)
    train(chosen.strategy, config=chosen, out=tmp_path / "back", resume=True)
    torch.testing.assert_close(tensors(tmp_path, "back"), exact, rtol=1e-7, atol=1e-10)


@pytest.mark.thorough
def test_a_signal_to_one_process_stops_all_after_the_same_step(launch):
    main_error, *others = failures(launch, "stopped")
    assert main_error[0] == "TrainingInterruptedError"
    assert "stopped by SIGTERM after step 2 of 6" in main_error[1]
    assert {kind for kind, _ in others} == {"ElsewhereError"}
    assert checkpoints(launch.folder / "stopped")[-1].name == "step-000006"
    resumed, whole = tensors(launch.folder, "stopped"), tensors(launch.folder, "ddp")
    assert all(resumed[key].equal(whole[key]) for key in whole)


@pytest.mark.thorough
def test_settings_that_differ_are_named_by_each_process_that_has_others(launch):
    found = failures(launch, "rates")
    assert found[0][0] == "ElsewhereError"
    for rank, (kind, text) in enumerate(found[1:], start=1):
        assert kind == "ConfigError"
        assert f"train.learning_rate = {rank}.01, and rank 0 has 0.01" in text
    assert not (launch.folder / "rates").exists()


@pytest.mark.thorough
def test_fewer_rows_than_processes_are_refused_by_one_of_them(launch):
    found = failures(launch, "rows")
    assert found[0][0] == "ConfigError"
    assert f"sequences_per_step is 1 for {launch.size} processes" in found[0][1]
    assert {kind for kind, _ in found[1:]} == {"ElsewhereError"}


@pytest.mark.thorough
def test_prompts_that_are_shared_out_decode_as_in_one_process(launch):
    prompts = (f"p={launch.folder / 'prompts.jsonl'}",)
    config = EvalConfig(max_tokens=12, batch=2)
    alone = evaluate(launch.folder / "alone", tasks=(), task_files=prompts, config=config).to_json()
    reports = [json.loads((launch.folder / f"eval-{n}.json").read_text()) for n in range(launch.size)]
    assert reports == [reports[0]] * launch.size
    for key in (
        "accepted_length",
        "conditional_acceptance",
        "survival",
        "num_rounds",
        "num_prompts",
        "tasks",
    ):
        assert reports[0][key] == alone[key]


@pytest.mark.thorough
def test_features_are_stored_as_by_one_process_and_told_once(launch):
    told = json.loads(launch.ended.out)
    assert (told["num_written"], told["num_missing"]) == (1, 0)
    values = launch.folder / "config.json"
    assert command("features", "--config", values, "--folder", launch.folder / "by-one", "-q").code == 0
    stored = [launch.folder / name / "shard-000000.safetensors" for name in ("features", "by-one")]
    assert stored[0].read_bytes() == stored[1].read_bytes()


#: What ends one of two processes in step 3, and the line of it.
ENDS = {
    "killed": "os.kill(os.getpid(), 9)",
    "raised": "raise ValueError('a bad block')",
    "refused": "raise ConfigError('a bad setting')",
}


@pytest.mark.thorough
@pytest.mark.parametrize("end", ENDS if THOROUGH else ["killed"])
def test_a_job_ends_when_one_process_does_and_names_it(tmp_path, end):
    save_target(tmp_path / "target")
    save_text(tmp_path / "text.jsonl")
    (tmp_path / "run.json").write_text(settings(tmp_path, num_steps=10**6).model_dump_json())
    (tmp_path / "fails.py").write_text(
        f"""import os
from deepspec import cli, distributed
from deepspec.errors import ConfigError
from deepspec.train.trainer import Trainer
step = Trainer.step

def failing(trainer, number, *, measure):
    if number == 2 and distributed.of_environment().rank == 1:
        {ENDS[end]}
    return step(trainer, number, measure=measure)

Trainer.step = failing
config, out = {str(tmp_path / "run.json")!r}, {str(tmp_path / "run")!r}
cli.main(["train", "--config", config, "--out", out, "--no-eval"])
"""
    )
    paths = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ended = torchrun(2, "fails", PYTHONPATH=os.pathsep.join(paths))
    assert ended.code != 0
    cause = ended.err[ended.err.index("Root Cause") :]
    assert "rank      : 1" in cause
    assert "error: rank 0 of 2: another process ended or did not answer" in ended.err
    assert f"torchrun ... -m deepspec train --resume --out {tmp_path / 'run'}" in ended.err
    if end == "killed":
        assert "Signal 9 (SIGKILL)" in cause
    elif end == "raised":
        assert "ValueError: a bad block" in ended.err
    else:
        assert "error: rank 1 of 2: a bad setting" in ended.err
        assert "error: rank 1 of 2: a bad setting" in cause


def test_processes_that_do_not_come_are_told_of_in_one_line(monkeypatch):
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in {**given, distributed.TIMEOUT_KEY: "0.5"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match="2 processes did not all meet at 127.0.0.1:0 within 0.5 s"):
        distributed.join()


@pytest.mark.parametrize("seconds", ["soon", "0", "inf"])
def test_a_timeout_that_is_none_is_refused(monkeypatch, seconds):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", distributed.TIMEOUT_KEY: seconds}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"DEEPSPEC_TIMEOUT_S='{seconds}'; give a number of seconds"):
        distributed.join()


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "many")])
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match=f"RANK={rank}, WORLD_SIZE={size}.*torchrun"):
        distributed.of_environment()


def test_a_command_of_one_process_is_refused_under_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = command("runs")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: rank 0 of 2: `deepspec runs` is one process's work; start it without torchrun (several share "
        "that of train, eval, features)\n"
    )


@pytest.mark.parametrize(("count", "size"), [(8, 3), (5, 4), (2, 4), (0, 2)])
def test_shares_are_even_and_leave_nothing_out(count, size):
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert [number for first, last in shares for number in range(first, last)] == list(range(count))
    lengths = [last - first for first, last in shares]
    assert max(lengths) - min(lengths) <= 1


def test_tensors_of_a_type_go_together_until_a_bucket_is_full():
    large = torch.zeros(distributed._BUCKET_BYTES // 8 + 1)
    small, exact = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    found = distributed._buckets([small, exact, large, large, small])
    assert [[len(tensor) for tensor in bucket] for bucket in found] == [[2, len(large)], [2], [len(large), 2]]
