"""Text to train on when none is given, unless the target is the demo's: sources of installed packages.

Drafters of the demo target train on ``assets/demo-text`` instead: its own continuations of these sources,
which it never saw. Nothing is downloaded. Files are taken in the order of a hash of their names until
``byte_limit``, so the choice is the same wherever the package versions are. The shipped evaluation prompts
come from the standard library, of which nothing is in here (a test looks).
"""

from __future__ import annotations

import hashlib

from deepspec.data.examples import Example, TextExample
from deepspec.data.local_text import HELD_OUT_PACKAGES, package_files
from deepspec.errors import DataError

#: About 2.7 million tokens of the demo tokenizer, which takes it some 3 seconds on one core.
DEFAULT_BYTES = 8_000_000


def default_examples(special_tokens: list[str], *, byte_limit: int = DEFAULT_BYTES) -> list[Example]:
    """The files, without those in which a special token is spelled out.

    Raises DataError when none of the packages has sources here.
    """
    files = sorted(package_files(HELD_OUT_PACKAGES), key=lambda f: hashlib.sha256(f.name.encode()).digest())
    examples: list[Example] = []
    used = 0
    for file in files:
        used += file.path.stat().st_size
        if used > byte_limit:
            break
        text = file.text()
        if text and not any(token in text for token in special_tokens):
            examples.append(TextExample(file.name, text))
    if not examples:
        raise DataError(
            f"no sources of the packages {', '.join(HELD_OUT_PACKAGES)} are installed, so there is no "
            "default text; give --data FILE.jsonl"
        )
    return examples
