"""``--push``: puts an exported folder on the hub; nothing else here writes anywhere but on this machine."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from deepspec.errors import ConfigError, ResourceError


def check_login(repo: str) -> str:
    """Who is logged in; raises ConfigError when nobody is, or ``repo`` is no name."""
    if repo.count("/") != 1:
        raise ConfigError(f"--push {repo}: give a hub name, OWNER/NAME")
    try:
        return str(HfApi().whoami()["name"])
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"--push {repo}: nobody is logged in to the hub; run `hf auth login`") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise ConfigError(f"--push {repo}: the hub does not take the login: {_line(error)}") from error


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a folder as a model; its address. Raises ResourceError when the hub does not take it."""
    api = HfApi()
    try:
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repo, repo_type="model"))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise ResourceError(f"{repo} could not be uploaded, {folder} is whole: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
