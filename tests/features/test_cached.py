"""Training on stored features: as on computed ones, without the target's layers, and on nothing else's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepspec.config import FeaturesConfig, RunConfig
from deepspec.data import BatchSampler, joined
from deepspec.errors import CheckpointError, ConfigError, DataError, DeepSpecError, TargetError
from deepspec.features import CachedFeatures, FeatureSource, OnlineFeatures, SourceContext
from deepspec.hookspecs import hookimpl
from deepspec.plugins import create_plugin_manager, register
from deepspec.runs import checkpoint_path, load
from deepspec.strategy import Strategy
from deepspec.target import load_target
from deepspec.train import train
from deepspec.train.text import corpora
from deepspec.types import Features, TokenBatch
from tests.features.conftest import save_documents
from tests.features.stored import losses, run, settings, shards, write
from tests.tiny_runs import save_target, strategy

STRATEGIES = ("dspark", "dflash", "eagle3", "mtp", "draft_model")
#: Stored, a piece went through the target beside other rows: matrix products sum in another order.
SAME = {"rtol": 1e-5, "atol": 1e-5}


def named(name: str) -> Strategy:
    return strategy(name) if name in ("dspark", "dflash") else Strategy.named(name).replace(draft_length=3)


def tapping(*layers: int) -> Strategy:
    return strategy(drafter={"type": "dflash", "num_layers": 1, "target_layers": list(layers)})


def online(chosen: RunConfig) -> RunConfig:
    return chosen.model_copy(update={"features": FeaturesConfig()})


@pytest.fixture(scope="module")
def cache(target: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a DSpark drafter's features in float32."""
    folder = tmp_path_factory.mktemp("cache")
    write(settings(target, text, folder))
    return folder


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_on_what_was_stored_exactly_is_training_online(
    target: Path, text: Path, tmp_path: Path, name: str
) -> None:
    chosen = settings(target, text, tmp_path / "cache", chosen=named(name))
    write(chosen)
    one, other = run(chosen, tmp_path / "stored"), run(online(chosen), tmp_path / "online")
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "online"), rel=1e-5)
    assert (one.target.is_whole, other.target.is_whole) == (False, True)
    loaded = [load(tmp_path / folder, device="cpu") for folder in ("stored", "online")]
    assert loaded[0].target.fingerprint == loaded[1].target.fingerprint
    validations = [
        json.loads((tmp_path / folder / "log.jsonl").read_text().splitlines()[-1])
        for folder in ("stored", "online")
    ]
    key = "expected_accepted_length"
    assert validations[0][key] == pytest.approx(validations[1][key], rel=1e-3)
    assert validations[0]["accepted_length"] is None


def test_a_bfloat16_target_is_stored_exactly_in_16_bits(target: Path, text: Path, tmp_path: Path) -> None:
    chosen = settings(target, text, tmp_path / "cache", bits=16, target={"dtype": "bfloat16"})
    write(chosen)
    run(chosen, tmp_path / "stored")
    run(online(chosen), tmp_path / "online")
    # Sums in another order are rounded to 8 bits here, at each of 4 layers.
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "online"), rel=1e-2)


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 2e-3), (8, 1e-2), (4, 5e-2)])
def test_fewer_bits_change_the_losses_little(
    target: Path, text: Path, tmp_path: Path, cache: Path, bits: int, tolerance: float
) -> None:
    chosen = settings(target, text, tmp_path / "cache", bits=bits)
    write(chosen)
    run(chosen, tmp_path / "few")
    run(settings(target, text, cache), tmp_path / "all")
    assert losses(tmp_path / "few") == pytest.approx(losses(tmp_path / "all"), rel=tolerance)
    assert losses(tmp_path / "few") != losses(tmp_path / "all")


def sources(chosen: RunConfig) -> tuple[CachedFeatures, OnlineFeatures, BatchSampler]:
    whole = load_target(chosen.target, device="cpu")
    head = CachedFeatures.open_target(chosen, "cpu")
    parts = chosen.strategy.build(head.info)
    drafter = parts.drafter
    corpus = joined(*corpora(chosen, whole, parts))
    sampler = BatchSampler(corpus, sequences=3, sequence_length=64, seed=7)
    stored = CachedFeatures(SourceContext.of(chosen, head, drafter))
    stored.check([corpus])
    return stored, OnlineFeatures(SourceContext.of(chosen, whole, drafter)), sampler


def test_features_are_those_of_each_row_in_whatever_packing_and_zero_where_nothing_is_stored(
    target: Path, text: Path, cache: Path
) -> None:
    stored, computed, sampler = sources(settings(target, text, cache))
    for step in range(4):
        batch = sampler.batch(step)
        found, true = stored.features(batch), computed.features(batch)
        for ours, theirs in ((found.tapped, true.tapped), (found.last_hidden, true.last_hidden)):
            kept = ours.abs().sum(dim=-1) > 0
            torch.testing.assert_close(ours[kept], theirs[kept], **SAME)
            assert 0 < int(kept.sum()) < int((batch.segments >= 0).sum())
        assert not found.tapped[batch.segments < 0].any()
        again = stored.features(batch)
        assert found.tapped.equal(again.tapped)
        assert found.last_hidden.equal(again.last_hidden)


def test_a_drafter_of_fewer_layers_reads_its_own_in_its_order(
    target: Path, text: Path, tmp_path: Path
) -> None:
    many = tapping(0, 1, 2)
    write(settings(target, text, tmp_path / "cache", chosen=many))
    few = settings(target, text, tmp_path / "cache", chosen=tapping(0, 2))
    stored, computed, sampler = sources(few)
    found, true = (source.features(sampler.batch(0)) for source in (stored, computed))
    kept = found.tapped.abs().sum(dim=-1) > 0
    torch.testing.assert_close(found.tapped[kept], true.tapped[kept], **SAME)


def test_the_target_comes_without_layers_and_says_so_when_it_is_to_decode(
    target: Path, text: Path, tmp_path: Path, cache: Path
) -> None:
    made = run(settings(target, text, cache, train={"num_steps": 1}), tmp_path / "run")
    assert len(made.target.model.get_decoder().layers) == 0
    with pytest.raises(TargetError, match="without its decoder layers.*deepspec.load"):
        made.target.forward(torch.tensor([1]), [], None, ())
    with pytest.raises(TargetError, match="without its decoder layers"):
        made.target.features(TokenBatch(*[torch.zeros(1, 2, dtype=torch.int64)] * 4), ())
    assert load(tmp_path / "run", device="cpu").target.is_whole


def test_a_resumed_run_goes_on_bit_for_bit_also_where_the_cache_was_moved(
    target: Path, text: Path, tmp_path: Path, cache: Path
) -> None:
    run(settings(target, text, cache), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(checkpoint_path(tmp_path / "half", 6))
    moved = Path(shutil.copytree(cache, tmp_path / "moved"))
    run(settings(target, text, moved), tmp_path / "half", resume=True)
    weights = [
        (checkpoint_path(tmp_path / name, 6) / "draft.safetensors").read_bytes() for name in ("whole", "half")
    ]
    assert weights[0] == weights[1]
    with pytest.raises(CheckpointError, match="features.bits"):
        run(settings(target, text, moved, bits=8), tmp_path / "half", resume=True)


def test_seed_and_split_do_not_matter_to_a_cache_and_reading_writes_nothing_there(
    target: Path, text: Path, tmp_path: Path, cache: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in [cache, *cache.iterdir()]}
    run(settings(target, text, cache, seed=3, data={"held_out_fraction": 0.5}), tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in [cache, *cache.iterdir()]} == before


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"bits": 8}, "another precision .bits 32 instead of 8"),
    "dtype": ({"target": {"dtype": "bfloat16"}}, "another float type .dtype float32 instead of bfloat16"),
    "layers": ({"chosen": tapping(2)}, "other target layers"),
    "drafter": ({"chosen": Strategy.named("mtp").replace(draft_length=3)}, "less than this drafter reads"),
    "rows": ({"data": {"sequence_length": 32}}, r"another text: \d+ of \d+ pieces"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_cache_of_something_else_is_refused_in_one_line(
    target: Path, text: Path, tmp_path: Path, cache: Path, case: str
) -> None:
    changes, words = OTHERS[case]
    with pytest.raises(DeepSpecError, match=words) as raised:
        run(settings(target, text, cache, **changes), tmp_path / "run")
    assert str(cache) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_another_targets_and_another_texts_features_are_refused(
    target: Path, text: Path, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(ConfigError, match="another target, .*weights"):
        run(settings(save_target(tmp_path / "other", seed=1), text, cache), tmp_path / "run")
    with pytest.raises(DataError, match="features of another text: 36 of 36 pieces"):
        run(settings(target, save_documents(tmp_path / "other.jsonl", seed=9), cache), tmp_path / "run")
    same = shutil.copytree(target, tmp_path / "same")
    assert run(settings(same, text, cache, train={"num_steps": 1}), tmp_path / "run").step == 1


@pytest.fixture
def own(cache: Path, tmp_path: Path) -> Path:
    """A copy of the cache, to be damaged."""
    return Path(shutil.copytree(cache, tmp_path / "own"))


def test_a_truncated_shard_is_named(target: Path, text: Path, tmp_path: Path, own: Path) -> None:
    name, content = sorted(shards(own).items())[1]
    (own / name).write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{name} is damaged .*deepspec features"):
        run(settings(target, text, own), tmp_path / "run")
    (own / name).unlink()
    with pytest.raises(ConfigError, match=rf"1 of \d+ shards are missing, {name}"):
        run(settings(target, text, own), tmp_path / "run")


@pytest.mark.parametrize("where", ["index", "rows"])
def test_a_corrupt_shard_is_named(target: Path, text: Path, tmp_path: Path, own: Path, where: str) -> None:
    [*_, (name, content)] = sorted(shards(own).items())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    first, stop = header["keys" if where == "index" else "tapped"]["data_offsets"]
    damaged = bytearray(content)
    for place in range(first, stop, 7):
        damaged[
            len(content)
            - max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
            + place
        ] ^= 1
    (own / name).write_bytes(damaged)
    with pytest.raises(DataError, match=f"{name} is damaged .*(index|checksum)"):
        run(settings(target, text, own), tmp_path / "run")


def test_a_folder_without_features_and_records_that_cannot_be_read_are_refused(
    target: Path, text: Path, tmp_path: Path, own: Path
) -> None:
    with pytest.raises(ConfigError, match="holds no features.*deepspec features"):
        run(settings(target, text, tmp_path / "empty"), tmp_path / "run")
    record = json.loads((own / "features.json").read_text())
    for content, words in (
        (json.dumps({**record, "format": 99}), "format 99.*upgrade"),
        (json.dumps({**record, "num_shards": "many"}), "num_shards"),
        ("{", "cannot be read"),
    ):
        (own / "features.json").write_text(content)
        with pytest.raises(DeepSpecError, match=words):
            run(settings(target, text, own), tmp_path / "run")


def test_a_plugin_brings_a_source_of_its_own(target: Path, text: Path, tmp_path: Path) -> None:
    seen: list[object] = []

    class Halved(FeatureSource):
        """Half of what the target says."""

        name = "halved"

        def check(self, texts) -> None:
            seen.append([text.num_pieces for text in texts])

        def features(self, batch: TokenBatch) -> Features:
            found = self.context.target.features(batch, self.context.layers)
            return Features(found.tapped / 2, found.last_hidden / 2)

    manager = create_plugin_manager()
    register(manager, SimpleNamespace(deepspec_parts=hookimpl(lambda: [Halved])), name="other")
    chosen = settings(target, text, tmp_path)
    halved = chosen.model_copy(update={"features": FeaturesConfig(source="halved")})
    train(halved.strategy, config=halved, out=tmp_path / "halved", manager=manager)
    run(online(chosen), tmp_path / "online")
    assert losses(tmp_path / "halved") != losses(tmp_path / "online")
    assert len(seen) == 1


def test_the_held_out_text_of_prepared_data_is_stored_too(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    save_documents(folder / "train.jsonl", seed=1)
    save_documents(folder / "held-out.jsonl", seed=2, number=3)
    (folder / "data.json").write_text("{}")
    chosen = settings(target, folder, tmp_path / "cache")
    write(chosen)
    assert run(chosen, tmp_path / "run").step == 6
