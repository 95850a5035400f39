"""Memory that runs out is one line that names what to lower, wherever it happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import deepspec
from deepspec.config import EvalConfig, TargetConfig
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import ResourceError
from deepspec.resources import memory, size_text, writing
from deepspec.runs import Run
from deepspec.target import KVSlots, Target, load, load_target
from deepspec.train.assemble import assemble
from tests.tiny_runs import strategy, untrained_run

EXHAUSTED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    OSError(12, "Cannot allocate memory"),
    MemoryError(),
]


@pytest.fixture(scope="module")
def run() -> Run:
    return untrained_run()


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str], None]:
    """Has a method fail as torch does when memory runs out."""

    def fail(*arguments: object, **options: object) -> None:
        raise EXHAUSTED[0]

    return lambda owner, method: monkeypatch.setattr(owner, method, fail)


@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: f"{type(error).__name__}: {error}"[:40])
def test_each_way_of_running_out_of_memory_is_known(error: Exception) -> None:
    with pytest.raises(ResourceError, match="lower it") as raised, memory(lambda: "lower it"):
        raise error
    assert raised.value.__cause__ is error


def test_another_error_passes_untouched() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory(lambda: "lower it"):
        raise RuntimeError("shapes do not match")


def test_a_file_that_cannot_be_written_is_named_even_where_memory_is_watched(tmp_path: Path) -> None:
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    with (
        pytest.raises(
            ResourceError, match=f"{path} cannot be written: .*No space left on device.*; make room"
        ),
        memory(lambda: "lower it"),
        writing(path, lambda: "make room"),
    ):
        path.write_text("x")


def test_the_outermost_speaks() -> None:
    with pytest.raises(ResourceError, match="outer"), memory(lambda: "outer"), memory(lambda: "inner"):
        raise MemoryError


def test_loading_a_target_names_its_float_type(exhausted: Callable[[type, str], None]) -> None:
    exhausted(load.AutoModelForCausalLM, "from_pretrained")
    with pytest.raises(ResourceError, match=r"does not fit into memory.*target\.dtype, now float16"):
        load_target(TargetConfig(dtype="float16"), device="cpu")


def test_putting_a_draft_model_on_a_device_says_what_to_do(
    run: Run, exhausted: Callable[[type, str], None]
) -> None:
    exhausted(torch.nn.ModuleDict, "to")
    with pytest.raises(ResourceError, match=r"draft model of 'dspark' on cpu.*--target-device"):
        assemble(strategy(), run.target, device=run.target.device, dtype=torch.float32, seed=0)


def test_kv_slots_name_the_engines_knobs(run: Run, exhausted: Callable[[type, str], None]) -> None:
    exhausted(KVSlots, "update")
    engine = Engine(run.target, None, max_batch=3, max_positions=40)
    with pytest.raises(ResourceError, match=r"3 KV slots of 41 positions; lower max_batch or max_positions"):
        engine.run([(1, 2)], SamplingParams(max_tokens=4))


@pytest.mark.parametrize("method", ["forward", "new_slots"])
def test_an_evaluation_names_its_batch(run: Run, exhausted: Callable[[type, str], None], method: str) -> None:
    exhausted(Target, method)
    with pytest.raises(ResourceError, match=r"lower eval\.batch \(--batch, now 2\) or eval\.max_tokens"):
        deepspec.evaluate(run, tasks=["prose"], config=EvalConfig(num_prompts=2, max_tokens=4, batch=2))


@pytest.mark.parametrize("method", ["forward", "new_slots"])
def test_generating_names_the_length(run: Run, exhausted: Callable[[type, str], None], method: str) -> None:
    exhausted(Target, method)
    with pytest.raises(ResourceError, match=r"lower --max-tokens \(now 9\), shorten the prompt of 2 tokens"):
        list(deepspec.generate(run, "ab", params=SamplingParams(max_tokens=9)))


def test_an_engines_draft_state_names_its_knobs(run: Run, exhausted: Callable[[type, str], None]) -> None:
    exhausted(type(run.parts.drafter), "allocate")
    with pytest.raises(ResourceError, match=r"5 requests of \d+ positions; lower max_batch or max_positions"):
        Engine(run.target, run.parts, max_batch=5, max_positions=40)


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2.5e9, "2.5 GB"), (38e12, "38 TB")]
)
def test_sizes_are_said_as_disks_are_sold(num_bytes: float, text: str) -> None:
    assert size_text(num_bytes) == text
