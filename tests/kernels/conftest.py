"""Settings of the kernels' tests: the interpreter puts its language in place once a launch."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _language_once_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter does it again at every call of a device function, a third of these tests' time."""
    from triton.runtime import interpreter

    patch, run = interpreter._patch_lang, interpreter.GridExecutor.__call__
    done: set[int] = set()

    def once(fn: Any) -> Any:
        if id(fn.__globals__) in done:
            return None
        done.add(id(fn.__globals__))
        return patch(fn)

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        done.clear()
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter, "_patch_lang", once)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
