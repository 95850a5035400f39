"""Turns whatever a command raises into one line on standard error and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer
from pydantic import ValidationError

from deepspec.distributed import await_the_end, leave, named, report
from deepspec.errors import (
    DeepSpecError,
    DistributedError,
    ElsewhereError,
    ResourceError,
    ServerError,
    TrainingError,
)

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

#: What the parser raises for a wrong command line; typer has carried it under several module names.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def report_failures(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    """The exit code of one command line."""
    try:
        given = list(arguments) if arguments is not None else None
        code = app(args=given, prog_name="deepspec", standalone_mode=False)
        sys.stdout.flush()
        leave()
    except ElsewhereError:
        await_the_end()  # the process that says why ends first
        return FAILED
    except DistributedError as error:
        sys.stderr.write(f"{_line(error)}\n")
        await_the_end()
        return FAILED
    except DeepSpecError as error:
        has_failed = isinstance(error, TrainingError | ResourceError | ServerError)
        return _say(error, FAILED if has_failed else BAD_INPUT)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        return _say(f"{'.'.join(map(str, details['loc']))}: {details['msg']}", BAD_INPUT)
    except _UsageError as error:
        return _say(_usage(error), BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort) as interruption:
        return _say(str(interruption) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has left (`deepspec ... | head`); keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code if isinstance(code, int) else 0


def _say(problem: object, code: int) -> int:
    sys.stdout.flush()
    line = _line(problem)
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    report(line)
    return code


def _line(problem: object) -> str:
    who = named()
    return f"error: {who + ': ' if who else ''}{' '.join(str(problem).split())}"


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "deepspec"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{message.rstrip('.')}; `{command} --help` shows what is allowed"
