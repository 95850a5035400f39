"""``python -m deepspec``, and ``torchrun ... -m deepspec``: the command line."""

from __future__ import annotations

from deepspec.cli import main

if __name__ == "__main__":
    main()
