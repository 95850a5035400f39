"""Settings of every test: guarded, without the user's cache, GPU tests skipped with a reason.

Without a GPU, Triton's kernels run in its interpreter, which reads its variable when a kernel is decorated.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib.metadata import entry_points

# Before anything imports Hugging Face: tests never reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Nor do plugins that happen to be installed beside DeepSpec count: tests are about what ships with it.
os.environ["DEEPSPEC_BLOCK_PLUGINS"] = ",".join(
    point.name
    for point in entry_points(group="deepspec")
    if point.dist is None or point.dist.name != "deepspec"
)

# Processes that share the cores have one thread each: threads that wait by spinning would starve the others.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest_plugins = ["tests.watch.guards"]
_BLOCKED = os.environ["DEEPSPEC_BLOCK_PLUGINS"]

# A slow machine is no failure. ``make test`` tries the same few examples each time, ``make test-all`` many
# new ones, and prints how to repeat one that fails.
ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", ANY_SPEED, max_examples=30, derandomize=True)
settings.register_profile("thorough", ANY_SPEED, max_examples=150, print_blob=True)
settings.load_profile("thorough" if os.environ.get("DEEPSPEC_THOROUGH") == "1" else "quick")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a CUDA device where there is none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or left in the user's cache, and the plugins blocked are those above."""
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("DEEPSPEC_BLOCK_PLUGINS", _BLOCKED)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A command sets up logging for its process; the next test starts as if none had run."""
    root, ours = logging.getLogger(), logging.getLogger("deepspec")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.captureWarnings(False)
