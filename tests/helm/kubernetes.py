"""Kubernetes' own schemas, strictly: what an object has that its kind does not know is a mistake."""

from functools import cache
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from kubernetes_validate import utils

utils.schema_contents = cache(utils.schema_contents)  # else megabytes of schemas are parsed for each object

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_TEXT = {"type": "string", "minLength": 1}


def _closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": [name for name in properties if name not in ("hostnames", "labels", "annotations", "for")],
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


_RULE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **dict.fromkeys(("alert", "record", "expr", "for", "keep_firing_for"), _TEXT),
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
    "required": ["expr"],
    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
}
_CUSTOM = {
    ("monitoring.coreos.com/v1", "PodMonitor"): _closed(
        selector=_closed(matchLabels=_TEXTS),
        podMetricsEndpoints=_list(_closed(port=_TEXT, path=_TEXT, interval=_TEXT)),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _closed(
        groups=_list(
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {"name": _TEXT, "interval": _TEXT, "rules": _list(_RULE)},
                "required": ["name", "rules"],
            }
        )
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _closed(
        parentRefs=_list({"type": "object"}),
        hostnames=_list(_TEXT),
        rules=_list(_closed(backendRefs=_list(_closed(name=_TEXT, port={"type": "integer"})))),
    ),
}
"""The spec of kinds that clusters have only by an addition: what the chart uses of them, from their documentation."""


def check(thing: dict[str, Any], version: str) -> None:
    """See that an object is one of its kind.

    Raises:
        jsonschema.ValidationError: it is not.
    """
    spec = _CUSTOM.get((thing["apiVersion"], thing["kind"]))
    if spec is None:
        major, minor, *_ = version.split(".")
        assert kubernetes_validate.validate(thing, version, strict=True) == f"{major}.{minor}"
    else:
        metadata = {"type": "object", "required": ["name"]}
        schema = _closed(apiVersion=_TEXT, kind=_TEXT, metadata=metadata, spec=spec)
        Draft202012Validator(schema).validate(thing)
