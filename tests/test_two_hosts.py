"""Two hosts, made of network namespaces with a cable between them, train one run by c10d rendezvous."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from deepspec.runs import checkpoint_path
from tests.distributed_worker import settings
from tests.tiny_runs import save_target, save_text

ROOT = Path(__file__).resolve().parent.parent
NEEDS = "needs to make network namespaces, which this machine does not allow"
ADDRESSES = ("10.213.7.1", "10.213.7.2")
LIMIT_S = 600


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces that reach each other and nothing else."""
    names = tuple(f"deepspec-{os.getpid()}-{n}" for n in (1, 2))
    ends = tuple(f"ds{os.getpid() % 10**6}{n}" for n in "ab")
    if shutil.which("ip") is None:
        pytest.skip(NEEDS)
    with ExitStack() as made:
        try:
            for name in names:
                ip("netns", "add", name)
                made.callback(ip, "netns", "del", name)
            ip(
                "link",
                "add",
                ends[0],
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                ends[1],
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError:
            pytest.skip(NEEDS)
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def train_on_both(hosts: tuple[str, str], tmp_path: Path) -> None:
    save_target(tmp_path / "target", dtype=torch.float64)
    save_text(tmp_path / "text.jsonl")
    (tmp_path / "run.json").write_text(settings(tmp_path).model_dump_json())
    where = ["--rdzv-backend=c10d", "--rdzv-id=two-hosts", f"--rdzv-endpoint={ADDRESSES[0]}:29511"]
    ours = ["-m", "deepspec", "train", "--config", str(tmp_path / "run.json"), "--out", str(tmp_path / "run")]
    running = []
    for host, address, end in zip(hosts, ADDRESSES, "ab", strict=True):
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        # Both know the same names, by which they could not tell whose address the endpoint is.
        is_first = f"--rdzv-conf=is_host={address == ADDRESSES[0]}"
        command += ["--nproc-per-node=1", *where, is_first, f"--local-addr={address}", *ours, "--no-eval"]
        interface = f"ds{os.getpid() % 10**6}{end}"
        variables = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface}
        running.append(
            subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=LIMIT_S)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    assert checkpoint_path(tmp_path / "run", 6).is_dir()
    start = json.loads((tmp_path / "run" / "starts.jsonl").read_text())
    assert start["num_processes"] == 2


if os.environ.get("DEEPSPEC_THOROUGH") == "1":  # a quarter of a minute, which quick runs do without

    @pytest.mark.thorough
    def test_two_hosts_train_one_run(hosts, tmp_path):
        train_on_both(hosts, tmp_path)
