"""Holds what was read from JSON against the form that it must have, and names the first value that differs."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What a value must be."""

    words: str
    is_right: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class Optional:
    """A value that may be missing, or null."""

    form: "Form"


@dataclasses.dataclass(frozen=True, slots=True)
class Each:
    """An object of any keys, whose values all have one form."""

    form: "Form"


Form = Kind | Optional | Each | Mapping[str, Any] | list[Any]
"""A kind, the forms of an object's keys, or the form of a list's every item."""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


TEXT = Kind("text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
COUNT = Kind("a whole number from 0", is_count)
TOTAL = Kind("a whole number from 1", lambda value: is_count(value) and value > 0)
NUMBER = Kind("a number", is_number)
FIGURE = Kind("a number or null", lambda value: value is None or is_number(value))
RANGE = Kind("two numbers or null", lambda value: value is None or is_pair(value))
SIZE = Kind("two numbers", is_pair)


def check_form(value: Any, form: Form, name: str = "") -> None:
    """Raise ValueError with the name of the first value that does not have its form, such as `readers[0].auc`."""
    if isinstance(form, Optional):
        if value is not None:
            check_form(value, form.form, name)
    elif isinstance(form, list):
        _demand(isinstance(value, list), value, name, "a list")
        for place, item in enumerate(value):
            check_form(item, form[0], f"{name}[{place}]")
    elif isinstance(form, Each):
        _demand(isinstance(value, dict), value, name, "an object")
        for key, item in value.items():
            check_form(item, form.form, f"{name}.{key}")
    elif isinstance(form, Mapping):
        _demand(isinstance(value, dict), value, name, "an object")
        for key, own in form.items():
            path = f"{name}.{key}" if name else key
            if key not in value and not isinstance(own, Optional):
                raise ValueError(f"it has no {path}")
            check_form(value.get(key), own, path)
    else:
        _demand(form.is_right(value), value, name, form.words)


def _demand(is_right: bool, value: Any, name: str, words: str) -> None:
    if not is_right:
        raise ValueError(f"{name or 'it'} is {_told(value)}, not {words}")


def _told(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."
