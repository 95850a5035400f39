"""One clear line out of pydantic's errors: the key, what was given, what is allowed, the nearest name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from deepspec.errors import ConfigError, nearest

_MOST_PROBLEMS = 3

ModelT = TypeVar("ModelT", bound=BaseModel)


def validate(model: type[ModelT], values: Mapping[str, Any], subject: str = "") -> ModelT:
    """``model`` from ``values``; raises ConfigError whose one line begins with ``subject``."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(explain(error, model, subject)) from error


def explain(error: ValidationError, model: type[BaseModel], subject: str = "") -> str:
    """All problems of ``error`` in one line."""
    problems = [_problem(details, model) for details in error.errors(include_url=False)]
    more = len(problems) - _MOST_PROBLEMS
    line = "; ".join(problems[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
    return f"{subject}: {line}" if subject else line


def _problem(details: Any, model: type[BaseModel]) -> str:
    location = tuple(str(part) for part in details["loc"])
    key = ".".join(location)
    if details["type"] == "extra_forbidden":
        return f"unknown key {key!r} ({nearest(location[-1], fields_at(model, location[:-1]))})"
    if details["type"] == "missing":
        return f"{key!r} is missing"
    message = details["msg"].removeprefix("Value error, ").replace("\n", " ")
    given = repr(details["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{key} = {given}: {message}" if key else message


def fields_at(model: type[BaseModel], location: tuple[str, ...]) -> list[str]:
    """The known keys of the model found by following ``location`` from ``model``."""
    for name in location:
        field = model.model_fields.get(name)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
