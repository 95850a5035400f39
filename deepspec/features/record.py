"""What a cache of features says it is of (``features.json``), and its refusal for anything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from deepspec.environment import versions
from deepspec.errors import CheckpointError, ConfigError
from deepspec.features.plan import Pieces, Shape
from deepspec.runs import read_json
from deepspec.target.head import weights_digest
from deepspec.validation import validate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deepspec.config import RunConfig
    from deepspec.target import Target

FORMAT = 1
NAME = "features.json"
_WRITE_OTHERS = "write this one's with `deepspec features` into another folder"
#: What each thing that must agree is called, and what to do where it does not.
_MUST_AGREE = {
    "weights": ("another target", _WRITE_OTHERS),
    "tokenizer": ("text of another tokenizer", _WRITE_OTHERS),
    "dtype": ("the target in another float type", "--set target.dtype to it"),
    "bits": ("another precision", "--set features.bits to it, or use another folder"),
    "layers": ("other target layers", _WRITE_OTHERS),
    "last_before_anchors": ("less than this drafter reads", _WRITE_OTHERS),
    "data": ("another text", _WRITE_OTHERS),
    "num_shards": ("shards of another size", _WRITE_OTHERS),
}


class CacheRecord(BaseModel):
    """A cache's ``features.json``; each writer of a cache makes the same one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    target: str
    revision: str | None
    fingerprint: str
    weights: str
    tokenizer: str
    dtype: str
    hidden_size: int
    layers: tuple[int, ...]
    bits: int
    last_before_anchors: bool
    data: str
    num_pieces: int
    num_tokens: int
    num_shards: int
    num_bytes: int
    versions: dict[str, str]


def make_record(
    target: Target, identity: Mapping[str, Any], pieces: Pieces, shape: Shape, num_bytes: int
) -> CacheRecord:
    """What a new cache says of itself; ``identity`` is what must agree."""
    return CacheRecord(
        format=FORMAT,
        target=target.name,
        revision=target.revision,
        fingerprint=target.fingerprint,
        hidden_size=shape.hidden_size,
        num_pieces=len(pieces.keys),
        num_tokens=pieces.num_tokens,
        num_bytes=num_bytes,
        versions=versions(),
        **identity,
    )


def identity_of(config: RunConfig, target: Target) -> dict[str, Any]:
    """What a cache must be of, to be read in a run of ``config``."""
    assert target.tokenizer is not None, "a loaded target always has its tokenizer"
    return {
        "weights": weights_digest(config.target),
        "tokenizer": _tokenizer_digest(target.tokenizer),
        "dtype": str(target.dtype).removeprefix("torch."),
        "bits": config.features.bits,
    }


def cache_folder(config: RunConfig) -> Path:
    """``features.folder``; raises ConfigError where there is none."""
    if config.features.folder is None:
        raise ConfigError(
            "stored features need a folder to lie in; give --set features.folder=FOLDER (`deepspec features` "
            "writes them)"
        )
    return Path(config.features.folder)


def read_record(folder: Path) -> CacheRecord:
    """What the cache in ``folder`` is of.

    Raises ConfigError when nothing is stored there, CheckpointError for a record that cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        raise ConfigError(
            f"features.folder {folder} holds no features; write them with `deepspec features` and the same "
            "settings"
        )
    values = read_json(path)
    if isinstance(written := values.get("format"), int) and written > FORMAT:
        raise CheckpointError(
            f"{path} has format {written}; this version of DeepSpec reads up to {FORMAT}: upgrade it"
        )
    return validate(CacheRecord, values, str(path))


def check_agrees(folder: Path, record: CacheRecord, wanted: Mapping[str, Any]) -> None:
    """Raise ConfigError naming the first thing that a cache is of and should not be."""
    for key, value in wanted.items():
        found = getattr(record, key)
        if found != value:
            what, advice = _MUST_AGREE[key]
            of = f", {record.target!r}" if key == "weights" else ""
            raise ConfigError(
                f"features.folder {folder} holds features of {what}{of} ({key} {found} instead of {value}); "
                f"{advice}"
            )


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:32]
