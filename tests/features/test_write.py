"""Writing a cache: as small as stated, refused where it does not fit, the same whoever writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deepspec.errors import ConfigError, ResourceError, TargetError
from deepspec.features import planned
from deepspec.features import shard as shard_module
from deepspec.features import write as write_module
from deepspec.features.planned import plan_cache
from deepspec.features.write import write_features
from deepspec.target import Target
from deepspec.types import Features, TokenBatch
from tests.features.stored import settings, shards, write
from tests.tiny_runs import save_target, save_text

#: Widths and rows of a real target's proportions: a scale of 2 bytes weighs less than what is left out.
WIDE = {"hidden_size": 128, "num_attention_heads": 8}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("wide"), **WIDE)


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """Text of which all is supervised: nothing is left out but a piece's ends."""
    lines = [f'{{"text": "{n} {" ".join(str(n * k) for k in range(60))}"}}' for n in range(3, 15)]
    path = tmp_path / "running.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(("bits", "most"), [(8, 0.5), (4, 0.28)])
@pytest.mark.parametrize("kind", ["responses", "running"])
def test_a_token_takes_at_most_a_half_and_some_more_than_a_quarter_of_bfloat16(
    wide: Path, text: Path, running: Path, tmp_path: Path, bits: int, most: float, kind: str
) -> None:
    chosen = settings(wide, text if kind == "responses" else running, tmp_path / "cache", bits=bits)
    report = write(chosen)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "cache").glob("shard-*"))
    share = on_disk / (report.num_tokens * (len(report.layers) + 1) * WIDE["hidden_size"] * 2)
    assert most / 2 < share <= most
    assert report.num_bytes == pytest.approx(on_disk, rel=0.02)
    assert report.share == pytest.approx(share, rel=0.02)


def test_planning_reads_no_layer_and_writes_nothing(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_module, "load_target", None)
    report = plan_cache(settings(target, text, tmp_path / "cache")).report()
    assert (report.num_missing, report.num_written) == (report.num_shards, 0)
    assert not (tmp_path / "cache").exists()


def test_parts_make_what_one_writer_makes_in_any_order(target: Path, text: Path, tmp_path: Path) -> None:
    write(settings(target, text, tmp_path / "one"))
    other = settings(target, text, tmp_path / "parts")
    left = [write(other, part=(number, 3)).num_missing for number in (2, 3, 1)]
    assert left[0] > left[1] > left[2] == 0
    assert shards(tmp_path / "one") == shards(tmp_path / "parts")
    records = [(tmp_path / name / "features.json").read_text() for name in ("one", "parts")]
    assert records[0] == records[1]


def test_what_is_complete_is_kept_and_what_is_not_is_written_again(
    target: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen, folder = settings(target, text, tmp_path / "cache"), tmp_path / "cache"
    assert write(chosen).num_shards >= 3
    before, times = shards(folder), [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    assert write(chosen).num_written == 0
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == times
    names = sorted(before)
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes(before[names[1]][:-10])
    assert write(chosen).num_written == 2
    assert shards(folder) == before
    assert names[1] in caplog.text


def test_a_writer_killed_at_any_moment_loses_no_complete_shard(
    target: Path, text: Path, tmp_path: Path
) -> None:
    write(settings(target, text, tmp_path / "whole"))
    folder = tmp_path / "killed"
    code = f"""
import os, time
from pathlib import Path
from deepspec.features import shard
from deepspec.target import Target
from deepspec.types import Features, TokenBatch
from tests.features.stored import settings, write
save, saved = shard.save_file, []
def slowly(tensors, path, **options):
    save(tensors, path, **options)
    saved.append(path)
    if len(saved) == 2:
        Path({str(tmp_path / "now")!r}).touch()
        time.sleep(60)
shard.save_file = slowly
write(settings(Path({str(target)!r}), Path({str(text)!r}), Path({str(folder)!r})))
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        while not (tmp_path / "now").exists() and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert list(shards(folder)) == ["shard-000000.safetensors"]
    assert len(list(folder.glob(".shard-*"))) == 1
    report = write(settings(target, text, folder))
    assert report.num_written == report.num_shards - 1
    assert shards(folder) == shards(tmp_path / "whole")
    assert not list(folder.glob(".*"))


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(planned, "shutil", disk)
    with pytest.raises(ResourceError) as raised:
        write(settings(target, text, tmp_path / "cache", bits=8))
    for words in ("features.bits=8", "1 kB free", "choose another features.folder", "(4: "):
        assert words in str(raised.value)
    assert not (tmp_path / "cache").exists()


def test_what_is_there_already_needs_no_room(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(target, text, tmp_path / "cache")
    write(chosen)
    disk = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr(planned, "shutil", disk)
    assert write(chosen).num_missing == 0


def test_a_disk_that_fills_up_keeps_the_complete_shards(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, chosen = tmp_path / "cache", settings(target, text, tmp_path / "cache")

    def fill(tensors: dict[str, torch.Tensor], path: Path, **options: object) -> None:
        if shards(folder):
            path.write_bytes(b"half of it")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path, **options)

    monkeypatch.setattr(shard_module, "save_file", fill)
    with pytest.raises(ResourceError, match=r"shard-000001.*No space left.*complete are kept") as raised:
        write(chosen)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in folder.iterdir()) == ["features.json", "shard-000000.safetensors"]
    monkeypatch.undo()
    assert write(chosen).num_missing == 0


def test_a_folder_that_cannot_be_written_is_named(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError, match=r"cache/features\.json cannot be written: .*Read-only.*another"):
        write(settings(target, text, tmp_path / "cache"))


def test_a_folder_in_the_place_of_a_file_is_refused_in_one_line(
    target: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        write(settings(target, text, tmp_path / "file" / "cache"))


def test_memory_that_runs_out_names_the_knob(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(write_module, "_stored", exhausted)
    with pytest.raises(ResourceError, match=r"train\.sequences_per_step \(now 3\)"):
        write(settings(target, text, tmp_path / "cache"))


def test_hidden_states_that_are_not_finite_are_not_stored(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(self: Target, batch: TokenBatch, layers: tuple[int, ...]) -> Features:
        found = self.decoder.read(batch, layers)
        return Features(found.tapped, torch.full_like(found.last_hidden, float("inf")))

    monkeypatch.setattr(Target, "features", overflowing)
    with pytest.raises(TargetError, match="not finite"):
        write(settings(target, text, tmp_path / "cache"))
    assert not shards(tmp_path / "cache")


def test_a_folder_with_features_of_something_else_is_refused(
    target: Path, text: Path, tmp_path: Path
) -> None:
    write(settings(target, text, tmp_path / "cache"))
    with pytest.raises(ConfigError, match="another precision .bits 32 instead of 8"):
        write(settings(target, text, tmp_path / "cache", bits=8))
    with pytest.raises(ConfigError, match="another text"):
        write(settings(target, save_text(tmp_path / "other.jsonl"), tmp_path / "cache"))
    with pytest.raises(ConfigError, match="another size .num_shards . instead of 1"):
        plan_cache(settings(target, text, tmp_path / "cache"))


def test_another_writer_that_was_faster_with_other_settings_is_noticed(
    target: Path, text: Path, tmp_path: Path
) -> None:
    slower = plan_cache(settings(target, text, tmp_path / "cache"))
    write(settings(target, text, tmp_path / "cache", bits=8))
    before = shards(tmp_path / "cache")
    with pytest.raises(ConfigError, match="another precision .bits 8 instead of 32"):
        write_features(slower)
    assert shards(tmp_path / "cache") == before


def test_the_order_of_the_documents_makes_no_other_cache(target: Path, text: Path, tmp_path: Path) -> None:
    write(settings(target, text, tmp_path / "cache"))
    lines = text.read_text().splitlines()
    (tmp_path / "turned.jsonl").write_text("\n".join(reversed(lines)))
    assert write(settings(target, tmp_path / "turned.jsonl", tmp_path / "cache")).num_written == 0
