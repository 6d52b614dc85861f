"""Reports about a configuration for the command line: warnings, effective values, and the JSON Schema."""

import ast
import inspect
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keyturn.config.fields import Settings
from keyturn.config.files import PASSWORD_FILES
from keyturn.config.loading import Config
from keyturn.config.models import Document
from keyturn.config.problems import path_of
from keyturn.core.errors import Problem

_CHMOD_ADVICE = "`chmod 600` it (in Kubernetes: `defaultMode: 0400`)"

_CREDENTIAL = re.compile(r"auth|cookie|credential|key|password|secret|token", re.IGNORECASE)
"""Matches names of header fields that hold credentials."""


def warnings(path: Path | None, config: Config) -> tuple[Problem, ...]:
    """Report what works but should be changed; a warning does not keep a process from starting."""
    found = [*_plain_secrets(path, config), *_open_files(config)]
    if config.store.url.looks_literal:
        found.append(
            Problem(
                "store.url",
                "its user name and password are percent-decoded (`%41` is `A`, `+` in the query a space): if they "
                "are meant literally, write them into `store.username` and `store.password`",
            )
        )
    if config.authentication_required and not config.clients:
        found.append(
            Problem(
                "clients", "authentication is required and there is no client, so every request gets 401: add a client"
            )
        )
    return tuple(found)


def _plain_secrets(path: Path | None, config: Config) -> Iterator[Problem]:
    if path is None or not _is_world_readable(path):
        return
    for place in config.files.plain:
        yield Problem(
            place,
            f"a secret in plain text in a file that all users can read: `chmod 600 {path}`, or write `${{NAME}}`"
            + (f" or `{place.rpartition('.')[2]}_file`" if place.endswith(("secret", "password")) else ""),
        )


def _open_files(config: Config) -> Iterator[Problem]:
    for name, pool in config.pools.items():
        for index, key in enumerate(pool.keys):
            if key.secret_file and _is_world_readable(key.secret_file):
                place = path_of(("pools", name, "keys", index, "secret_file"))
                yield Problem(place, f"all users can read {key.secret_file}: {_CHMOD_ADVICE}")
        for path in config.files.listed.get(pool.keys_dir, ()) if pool.keys_dir else ():
            if _is_world_readable(path):
                yield Problem(path_of(("pools", name, "keys_dir")), f"all users can read {path}: {_CHMOD_ADVICE}")

    for name in PASSWORD_FILES:
        password = getattr(config.store, name)
        if password and _is_world_readable(password):
            yield Problem(f"store.{name}", f"all users can read {password}: {_CHMOD_ADVICE}")


def _is_world_readable(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def effective(config: Config) -> dict[str, Any]:
    """The configuration with all defaults, as config.yaml would write it; secrets are masked as `…`.

    The same holds for values of a pool's header fields whose names look like credentials.
    """
    shown = config.model_dump(mode="json")
    shown["authentication"] = "required" if config.authentication_required else "off"
    for caller in (shown["anonymous"], *shown["clients"]):
        if caller["max_waiting"] is None:
            caller["max_waiting"] = shown["queue"]["max_waiting"]
        if caller["max_in_flight"] is None:
            caller["max_in_flight"] = config.usual_in_flight
    for pool in shown["pools"].values():
        for name in filter(_CREDENTIAL.search, pool["headers"]):
            pool["headers"][name] = "…"
    return shown


_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = {"$ref": "#/$defs/FromEnvironment"}
_FROM_ENVIRONMENT = {
    "title": "From the environment",
    "description": "A value that the environment gives: `${NAME}` or `${NAME:-default}`.",
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}",
}
_DESCRIPTION_KEYS = ("title", "description", "default", "examples")


def schema() -> dict[str, Any]:
    """The schema of the document as written, before `${NAME}` is replaced."""
    made = Document.model_json_schema()
    sections = {section.__name__: section for section in _sections(Settings)}
    definitions = {name: _section(body, sections[name]) for name, body in made.pop("$defs").items()}
    body = _section(made, Document) | {"title": "Keyturn configuration", "description": "The settings of config.yaml."}
    return {"$schema": _DIALECT, **body, "$defs": {**definitions, "FromEnvironment": _FROM_ENVIRONMENT}}


def _sections(above: type[Settings]) -> Iterator[type[Settings]]:
    for section in above.__subclasses__():
        yield section
        yield from _sections(section)


def _descriptions(section: type[Settings]) -> dict[str, str]:
    """The docstrings below a section's fields; pydantic would read them at each start of the proxy."""
    found: dict[str, str] = {}
    for part in reversed(section.__mro__):
        if issubclass(part, Settings):
            (tree,) = ast.parse(inspect.getsource(part)).body
            assert isinstance(tree, ast.ClassDef)
            for field, below in zip(tree.body, tree.body[1:], strict=False):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        found[name] = inspect.cleandoc(text)
    return found


def _section(body: dict[str, Any], section: type[Settings]) -> dict[str, Any]:
    told = _descriptions(section)
    properties = {
        name: {"description": told[name], **field} if name in told else field
        for name, field in body.get("properties", {}).items()
    }
    fields = {name: _setting(field) for name, field in properties.items()}
    return {**body, "title": body["title"].removesuffix("Settings"), "properties": fields}


def _setting(field: dict[str, Any]) -> dict[str, Any]:
    about = {key: field[key] for key in _DESCRIPTION_KEYS if key in field}
    return about | _interpolated({key: value for key, value in field.items() if key not in _DESCRIPTION_KEYS})


def _interpolated(body: dict[str, Any]) -> dict[str, Any]:
    """Permit `${NAME}` wherever the schema asks for more than text."""
    if "anyOf" in body:
        return {"anyOf": [_interpolated(option) for option in body["anyOf"]]}
    if isinstance(body.get("items"), dict):
        return {**body, "items": _interpolated(body["items"])}
    if body.get("type") in ("integer", "number", "boolean") or "enum" in body or "pattern" in body:
        return {"anyOf": [body, _REFERENCE]}
    return body
