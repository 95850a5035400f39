"""Find and load a model by name, folder or commit, and say in one line why it cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import errors as hub
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from deepspec.distributed import ALONE, World, join, of_environment
from deepspec.errors import ConfigError, TargetError
from deepspec.paths import DEMO, asset
from deepspec.resources import memory
from deepspec.target.decoder import without_notices
from deepspec.target.model import Target, make_target
from deepspec.target.sharding import shard_target

if TYPE_CHECKING:
    from deepspec.config import TargetConfig

Loaded = TypeVar("Loaded")
#: From names in a multimodal checkpoint to those of its text model alone.
_TEXT_NAMES = {
    r"^language_model\.lm_head": "lm_head",
    r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head)": "model.",
}
_LOAD_ERRORS = (OSError, ValueError, ImportError, RuntimeError, KeyError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class ModelSource:
    """A causal language model that a user named, and the words for what can go wrong with it.

    Weights are read from safetensors alone.

    Attributes:
        what: what it is called in errors, as in ``target``.
        name: a hub id, a folder, or ``demo``. revision: commit, branch or tag on the hub.
        revision_key: what sets the revision. own_code: what to do about a model that needs its own code.
        too_big: what to do when the memory does not hold it.
        trust_remote_code: whether its own code may run.
    """

    what: str
    name: str
    revision: str | None
    revision_key: str
    own_code: str
    too_big: str
    trust_remote_code: bool = False

    def load_model(self, dtype: torch.dtype | str) -> PreTrainedModel:
        """The model on the host; ``auto`` is the type that its weights are stored in.

        Raises:
            TargetError: not there, offline, gated, wrong revision, or unreadable.
            ResourceError: it does not fit into memory.
        """

        def load() -> PreTrainedModel:
            whole = AutoConfig.from_pretrained(self.place, **self.options)
            text = _text_config(whole)
            return read_model(self.place, text, dtype, self.options, is_part=text is not whole)

        return self.attempt(load)

    def config(self) -> Any:
        """The text model's configuration, also of one that sees or hears; errors as of a load."""
        return self.attempt(lambda: _text_config(AutoConfig.from_pretrained(self.place, **self.options)))

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer; raises TargetError."""
        return self.attempt(lambda: AutoTokenizer.from_pretrained(self.place, **self.options))

    def attempt(self, load: Callable[[], Loaded]) -> Loaded:
        """Run a loader and turn what can go wrong into one line that says which."""
        try:
            with memory(lambda: f"{self.what} {self.name!r} does not fit into memory; {self.too_big}"):
                return load()
        except _LOAD_ERRORS as error:
            reason = self._hub_reason(error) or _folder_reason(error, self.name)
            reason = reason or self._absent_reason(error)
            reason = reason or f"cannot be loaded: {_first_line(error)}"
            raise TargetError(f"{self.what} {self.name!r} {reason}") from error

    @property
    def place(self) -> str:
        """Where transformers finds it."""
        return str(asset("demo-target")) if self.name == DEMO else self.name

    @property
    def commit(self) -> str | None:
        """The commit that was loaded from the hub; for a folder what was asked for."""
        if Path(self.place).is_dir():
            return self.revision
        found = try_to_load_from_cache(self.place, "config.json", revision=self.revision)
        return Path(found).parent.name if isinstance(found, str) else self.revision

    @property
    def options(self) -> dict[str, Any]:
        """What all of transformers' loaders are to be given."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def _hub_reason(self, error: BaseException) -> str | None:
        causes = list(_chain(error))
        if any(isinstance(cause, hub.GatedRepoError) for cause in causes):
            return "is gated; request access on its page and log in with `hf auth login`"
        if any(isinstance(cause, hub.RevisionNotFoundError) for cause in causes):
            existing = f"give {self.revision_key} an existing branch, tag or commit"
            return f"has no revision {self.revision!r}; {existing}"
        if any(isinstance(cause, hub.RepositoryNotFoundError) for cause in causes):
            return "was not found on the hub; check the spelling, or log in if it is private"
        if "trust_remote_code" in str(error):
            return f"needs its own code to load; {self.own_code}"
        return None

    def _absent_reason(self, error: BaseException) -> str | None:
        causes = list(_chain(error))
        if any(isinstance(cause, hub.HFValidationError) for cause in causes):
            return "is neither a folder here nor a hub id, which is NAME or OWNER/NAME"
        if not any(isinstance(cause, hub.LocalEntryNotFoundError) for cause in causes):
            return None
        which = f"at revision {self.revision!r} " if self.revision else ""
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the hub cannot be reached"
        instead = "a local folder, or `demo`" if self.what == "target" else "a local folder"
        return f"{which}is not in the local cache, and {why}; give {instead}"


def load_target(config: TargetConfig, *, device: str | None = None) -> Target:
    """Load a causal language model and its tokenizer, frozen.

    Of several processes each has a share of its layers where ``config.parallel`` says so; each reads it whole
    into the host's memory first.

    Args:
        config: name (a hub id, a folder, or ``demo``), commit, float type, device.
        device: used when the configuration names none; the best available when both are None.

    Raises:
        TargetError: not there, offline, gated, wrong revision, unreadable, or of an unsupported kind.
        ConfigError: a device that this machine does not have.
        ResourceError: it does not fit into memory.
    """
    place = resolve_device(config.device or device)
    source = target_source(config)
    world = join() if config.parallel == "fsdp" else ALONE

    def load() -> Target:
        model = source.load_model(target_dtype(config.dtype, place))
        tokenizer = source.load_tokenizer()
        first = place if world.is_alone else torch.device("cpu")
        return source.attempt(
            lambda: make_target(model.to(first), tokenizer, name=config.name, revision=source.commit)
        )

    target = world.together(load)
    return target if world.is_alone else source.attempt(lambda: shard_target(target, place))


def load_tokenizer(config: TargetConfig) -> PreTrainedTokenizerBase:
    """A target's tokenizer without its weights; raises TargetError."""
    return target_source(config).load_tokenizer()


def target_source(config: TargetConfig) -> ModelSource:
    """The model that a configuration names as its target."""
    return ModelSource(
        what="target",
        name=config.name,
        revision=config.revision,
        revision_key="--target-revision",
        own_code="pass --trust-remote-code (trust_remote_code=True) if you trust it",
        too_big=f"hold its weights in less (target.dtype, now {config.dtype}: --set target.dtype=bfloat16), "
        "place it elsewhere (--target-device), or take a smaller one",
        trust_remote_code=config.trust_remote_code,
    )


def resolve_device(name: str | None) -> torch.device:
    """The device called ``name``, checked; the best this machine has when None.

    Each of a host's processes has a CUDA device of its own unless it is given another.
    """
    world = of_environment()
    if name in (None, "cuda") and not world.is_alone and torch.cuda.is_available():
        return _own_cuda(world)
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is unknown; allowed are cpu, mps, cuda or cuda:N") from None
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= available.get(device.type, 0):
        have = ", ".join(f"{kind} ({count})" for kind, count in available.items() if count)
        raise ConfigError(f"device {name!r} is not on this machine; available: {have}")
    return device


def _own_cuda(world: World) -> torch.device:
    count = torch.cuda.device_count()
    if world.local_rank >= count:
        raise ConfigError(
            f"this is process {world.local_rank + 1} of its host, which has {count} CUDA devices; give "
            f"torchrun --nproc-per-node {count} at most, or --device cpu"
        )
    return torch.device("cuda", world.local_rank)


def target_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """What a target's weights are held in on ``device``, from ``target.dtype``."""
    if name != "auto":
        return getattr(torch, name)
    return torch.float32 if device.type == "cpu" else "auto"


def read_model(
    source: str, config: Any, dtype: torch.dtype | str, options: dict[str, Any], *, is_part: bool
) -> Any:
    """The model at ``source``, read from safetensors alone; errors are transformers' own.

    Raises ValueError where the files lack weights, which transformers would fill with random numbers.

    Args:
        is_part: whether the files hold more than the model, of which transformers then says nothing.
    """
    is_text = config.get_text_config() is config
    quiet = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with without_notices() if is_part else nullcontext():
            model, found = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                key_mapping=_TEXT_NAMES if is_text else None,
                **options,
            )
    finally:
        if quiet:
            transformers_logging.enable_progress_bar()
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"its files lack {len(missing)} of its weights, {missing[0]} for one")
    return model


def _text_config(whole: Any) -> Any:
    """The part of a multimodal configuration that is a causal language model's; else the whole of it."""
    text = whole.get_text_config()
    if text is whole or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return whole
    text = deepcopy(text)
    text.tie_word_embeddings = whole.tie_word_embeddings  # this one counts
    if (quantized := getattr(whole, "quantization_config", None)) is not None:
        text.quantization_config = quantized
    return text


def _folder_reason(error: BaseException, name: str) -> str | None:
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            return "cannot be read: the folder has no config.json"
        has_tokenizer = "instantiate the backend tokenizer" not in str(error)
        return f"cannot be read: {_first_line(error) if has_tokenizer else 'the folder has no tokenizer'}"
    if folder.is_absolute() or name.startswith("."):
        return "does not exist; give a folder with config.json and safetensors, or a hub id"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
