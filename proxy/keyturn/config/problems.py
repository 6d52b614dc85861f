"""Problems of a document: where they are, and what to write instead. No message shows a value: it may be a secret."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from keyturn.config.units import Listener, parse_duration, parse_listener
from keyturn.core.errors import Problem
from keyturn.core.model import Micros

Loc = tuple[str | int, ...]
"""The place of a value: keys of mappings and positions in lists, from the root."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the raw document and its place. It never fails: a missing value is `None`."""

    value: Any
    loc: Loc = ()

    def __getitem__(self, key: str) -> "Node":
        return Node(self.value.get(key) if isinstance(self.value, dict) else None, (*self.loc, key))

    def items(self) -> Iterator["Node"]:
        """The entries of a list."""
        for index, item in enumerate(self.value if isinstance(self.value, list) else ()):
            yield Node(item, (*self.loc, index))

    def entries(self) -> Iterator[tuple[str, "Node"]]:
        """The entries of a mapping."""
        for key in self.value if isinstance(self.value, dict) else ():
            yield key, self[key]

    @property
    def given(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    @property
    def text(self) -> str | None:
        """The text; `None` when the value is missing or no text."""
        return self.value.strip() or None if isinstance(self.value, str) else None

    @property
    def true(self) -> bool:
        """Whether the value is `true`."""
        return self.value is True or str(self.value).lower() in ("true", "yes", "on", "1")

    def path(self, base: Path) -> Path | None:
        """The file that it names, relative to a directory."""
        return base / self.text if self.text and "\0" not in self.text else None

    def duration(self, default: str) -> Micros | None:
        """The duration in microseconds; `None` when the value is invalid."""
        try:
            return parse_duration(self.value if self.given else default)
        except ValueError:
            return None

    def listeners(self, default: str) -> list[tuple["Node", Listener]]:
        """The listeners of a setting that is one or a list, without invalid ones."""
        found = []
        for node in self.items() if isinstance(self.value, list) else [self]:
            try:
                found.append((node, parse_listener(node.value if node.given else default)))
            except ValueError:
                continue
        return found

    def problem(self, message: str) -> Problem:
        """A problem at this place."""
        return Problem(path_of(self.loc), message)


_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SHORT_KEY = re.compile(r"[A-Za-z0-9_.-]{1,32}")

MAX_PLACES = 4
"""The most places of a setting that a hint names."""

_MAPPING = "write a mapping: `name: value` lines, indented, a space after the colon"
_LIST = "write a list: a line `- …` for each entry"
_WHOLE_NUMBER_HINT = "write a whole number"
_TEXT = "write text, in quotes if it looks like a number"
_EMPTY_LIST_ERROR = "too_short"
_MESSAGES: Mapping[str, str] = {
    "bool_parsing": "write `true` or `false`",
    "bool_type": "write `true` or `false`",
    "dict_type": _MAPPING,
    "finite_number": "write a number",
    "float_parsing": "write a number",
    "float_type": "write a number",
    "frozen_set_type": _LIST,
    "int_from_float": _WHOLE_NUMBER_HINT,
    "int_parsing": _WHOLE_NUMBER_HINT,
    "int_parsing_size": _WHOLE_NUMBER_HINT,
    "int_type": _WHOLE_NUMBER_HINT,
    "list_type": _LIST,
    "mapping_type": _MAPPING,
    "missing": "is missing: write it",
    "model_attributes_type": _MAPPING,
    "model_type": _MAPPING,
    "path_type": "write the path of a file",
    "string_type": _TEXT,
    _EMPTY_LIST_ERROR: "write at least one entry",
    "tuple_type": _LIST,
}
RENAMED_SETTINGS: Mapping[str, str] = {
    "inbound.keep_alive": "inbound.idle_timeout",
    "inbound.max_connections_per_peer": "inbound.max_connections_per_address",
}
"""Settings of earlier versions, and their names now."""
REMOVED_SETTINGS: Mapping[str, str] = {
    "inbound.max_pipelined": "requests of one connection are always read one at a time",
}
"""Settings of earlier versions that have no successor, with the reason."""
_MESSAGE_FORMATS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda of: f"write a number above {of['gt']}",
    "greater_than_equal": lambda of: f"write a number of at least {of['ge']}",
    "less_than": lambda of: f"write a number below {of['lt']}",
    "less_than_equal": lambda of: f"write a number of at most {of['le']}",
    "literal_error": lambda of: f"write one of {str(of['expected']).replace(chr(39), '`').replace(' or ', ', ')}",
    "string_too_long": lambda of: f"write at most {of['max_length']} characters",
    "string_too_short": lambda of: f"write at least {of['min_length']} character(s)",
    "value_error": lambda of: str(of["error"]),
}


def path_of(loc: Loc) -> str:
    """Write a place as a path; a key with other characters is put in brackets, an overlong one is not shown."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part) and _SHORT_KEY.fullmatch(part):
            path += f".{part}" if path else part
        else:
            path += f'["{part}"]' if _SHORT_KEY.fullmatch(part) else '["…"]'
    return path


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean …?` when one of the words is similar, else nothing."""
    close = get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


def problems_of(error: ValidationError, model: type[BaseModel], document: Any) -> list[Problem]:
    """Translate pydantic's errors into problems such as `clients[2].weight: …`."""
    details = error.errors(include_url=False, include_input=False)
    located = [(path_of(_located(detail["loc"], document)), detail) for detail in details]
    wrong = {place for place, detail in located if detail["type"] != _EMPTY_LIST_ERROR}
    return [
        Problem(place, _message(detail, model, document))
        for place, detail in located
        if detail["type"] != _EMPTY_LIST_ERROR or place not in wrong  # a list of one wrong entry is not empty
    ]


def _located(loc: Loc, document: Any) -> Loc:
    """Drop parts of pydantic's location that are not in the document: tags of unions, an index into a lone value."""
    place: list[str | int] = []
    for index, part in enumerate(loc):
        if isinstance(document, dict) and (part in document or (index == len(loc) - 1 and part != "[key]")):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            continue
        place.append(part)
    return tuple(place)


def _message(detail: ErrorDetails, model: type[BaseModel], document: Any) -> str:
    kind, loc = detail["type"], detail["loc"]
    if kind == "extra_forbidden":
        return _unknown_key(loc, model, document)
    if kind in ("model_type", "model_attributes_type") and (hint := _not_a_section(loc, model)):
        return hint
    if kind in _MESSAGE_FORMATS:
        return _MESSAGE_FORMATS[kind](detail.get("ctx", {}))
    return _MESSAGES.get(kind, "this value is not allowed here: see docs/configuration.md")


def _unknown_key(loc: Loc, model: type[BaseModel], document: Any) -> str:
    place = path_of(loc)
    if place in RENAMED_SETTINGS:
        return f"was renamed: write `{RENAMED_SETTINGS[place]}`"
    if place in REMOVED_SETTINGS:
        return f"was removed, since {REMOVED_SETTINGS[place]}: delete it"
    name, known = str(loc[-1]), _model_at(loc[:-1], model).model_fields
    guess = did_you_mean(name, known)
    hint = "" if guess else _is_no_entry(loc[:-1], model) or _stray_entry(loc, model, document)
    if hint:
        return f"unknown key; {hint}"
    if places := list(_places(name, model)):
        listed = ", ".join(f"`{place}`" for place in places[:MAX_PLACES])
        return f"unknown key here; there is {listed}: check the indentation"
    return f"unknown key{guess}" if guess else f"unknown key; known here: {', '.join(known)}"


def _not_a_section(loc: Loc, model: type[BaseModel]) -> str:
    """A hint if there is a value in place of an entry of a mapping, such as a pool."""
    if hint := _is_no_entry(loc, model):
        return hint
    places = list(_places(str(loc[-1]), model)) if _entry_at(loc, model) else []
    return f"`{loc[-2]}` holds entries by name, and there is `{places[0]}`: check the indentation" if places else ""


def _is_no_entry(loc: Loc, model: type[BaseModel]) -> str:
    """A hint if an entry of a mapping has the name of a setting, which then is one level too high."""
    entry, name = _entry_at(loc, model), str(loc[-1]) if loc else ""
    if entry is None or name not in entry.model_fields:
        return ""
    return (
        f"`{loc[-2]}` holds entries by name: write one, such as `default:`, above `{name}`, and indent `{name}` below"
    )


def _entry_at(loc: Loc, model: type[BaseModel]) -> type[BaseModel] | None:
    """The model of a mapping's entries, if the place is that of one."""
    field = _model_at(loc[:-2], model).model_fields.get(str(loc[-2])) if len(loc) > 1 else None
    return _model_in(field.annotation) if field is not None and _is_mapping(field.annotation) else None


def _stray_entry(loc: Loc, model: type[BaseModel], document: Any) -> str:
    """A hint if an unknown section looks like an entry of a mapping, such as a pool, that lacks indentation."""
    value: Any = document.get(loc[0]) if len(loc) == 1 and isinstance(document, dict) else None
    settings = list(value) if isinstance(value, dict) else []
    for name, field in model.model_fields.items():
        entry = _model_in(field.annotation) if _is_mapping(field.annotation) else None
        if entry is not None and any(key in entry.model_fields for key in settings):
            return f"if it is one of the `{name}`, indent it under `{name}:`"
    return ""


def _places(name: str, model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The places of settings of this name: `upstream.url`, `clients[].weight`, `pools.NAME.keys`."""
    for other, field in model.model_fields.items():
        place = f"{above}{other}"
        if other == name:
            yield place
        elif section := _model_in(field.annotation):
            entry = ".NAME" if _is_mapping(field.annotation) else "[]" if _is_list(field.annotation) else ""
            yield from _places(name, section, f"{place}{entry}.")


def _model_at(loc: Loc, model: type[BaseModel]) -> type[BaseModel]:
    skip = False
    for part in loc:
        field = model.model_fields.get(str(part)) if not skip and isinstance(part, str) else None
        skip = False
        if field is not None:
            model = _model_in(field.annotation) or model
            skip = _is_mapping(field.annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _is_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple
