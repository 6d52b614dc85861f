"""The JSON Schema of config.yaml, for editors and the chart."""

from typing import Any

from keyturn.config.models import Document

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = {"$ref": "#/$defs/FromEnvironment"}
_FROM_ENVIRONMENT = {
    "title": "From the environment",
    "description": "A value that the environment gives: `${NAME}` or `${NAME:-default}`.",
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}",
}
_ABOUT = ("title", "description", "default", "examples")


def schema() -> dict[str, Any]:
    """The schema of the document as it is written, before `${NAME}` is replaced."""
    made = Document.model_json_schema()
    definitions = {name: _section(body) for name, body in made.pop("$defs").items()}
    body = _section(made) | {"title": "Keyturn configuration", "description": "The settings of config.yaml."}
    return {"$schema": _DIALECT, **body, "$defs": {**definitions, "FromEnvironment": _FROM_ENVIRONMENT}}


def _section(body: dict[str, Any]) -> dict[str, Any]:
    fields = {name: _setting(field) for name, field in body.get("properties", {}).items()}
    return {**body, "title": body["title"].removesuffix("Settings"), "properties": fields}


def _setting(field: dict[str, Any]) -> dict[str, Any]:
    about = {key: field[key] for key in _ABOUT if key in field}
    return about | _interpolated({key: value for key, value in field.items() if key not in _ABOUT})


def _interpolated(body: dict[str, Any]) -> dict[str, Any]:
    """Let `${NAME}` stand wherever the schema asks for more than some text."""
    if "anyOf" in body:
        return {"anyOf": [_interpolated(option) for option in body["anyOf"]]}
    if isinstance(body.get("items"), dict):
        return {**body, "items": _interpolated(body["items"])}
    if body.get("type") in ("integer", "number", "boolean") or "enum" in body or "pattern" in body:
        return {"anyOf": [body, _REFERENCE]}
    return body
