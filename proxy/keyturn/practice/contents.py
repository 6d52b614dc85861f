"""Contents of collections and environments: generated ones (the same seed gives the same data), and checks."""

from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

_SUBJECTS = (
    "Billing",
    "Orders",
    "Customers",
    "Inventory",
    "Shipping",
    "Search",
    "Payments",
    "Identity",
    "Catalogue",
    "Reports",
)
_NOUNS = ("API", "Service", "Gateway", "Webhooks", "Contract tests", "Smoke tests", "Admin", "Public reference")
_STAGES = ("Production", "Staging", "Development", "Sandbox", "Local")
_VERBS = (
    ("GET", "List"),
    ("GET", "Get"),
    ("POST", "Create"),
    ("PUT", "Replace"),
    ("PATCH", "Update"),
    ("DELETE", "Delete"),
)
_WORDS = (
    "account",
    "amount",
    "batch",
    "carrier",
    "currency",
    "delivery",
    "discount",
    "invoice",
    "label",
    "order",
    "parcel",
)
_SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
OWNER = 10000001
"""The user that everything belongs to; some fields give the number, most its digits."""
PRACTICE_RUN = "Practice run"
RUN_PATH = ("echo", "practice")
"""Where the requests of the practice run go, which need no key: they stand for those to a service under test."""


def made_uuid(random: Random) -> str:
    """A version 4 UUID from a generator."""
    return str(UUID(int=random.getrandbits(128), version=4))


def moment(random: Random) -> str:
    """Some moment of 2025 in the API's notation."""
    day, hour, minute, second = (
        random.randint(1, 28),
        random.randint(0, 23),
        random.randint(0, 59),
        random.randint(0, 59),
    )
    return f"2025-{random.randint(1, 12):02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z"


def now() -> str:
    """The present moment in the API's notation."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.000Z"


def subject_name(random: Random) -> str:
    """A random name for a workspace or a collection."""
    return f"{random.choice(_SUBJECTS)} {random.choice(_NOUNS)}"


def environment_name(random: Random) -> str:
    """A random name for an environment."""
    return f"{random.choice(_SUBJECTS)} {random.choice(_STAGES)}"


def collection_of(random: Random, name: str) -> dict[str, Any]:
    """A collection (format v2.1) of two to six folders of requests."""
    folders = [
        {
            "name": f"{random.choice(_WORDS)}s".capitalize(),
            "item": [_request_item(random) for _ in range(random.randint(3, 9))],
        }
        for _ in range(random.randint(2, 6))
    ]
    return {"info": _info(name, _sentence(random)), "item": folders, "auth": _auth()}


def practice_run(base_url: str) -> dict[str, Any]:
    """Three requests to `{{baseUrl}}` with `{{apiKey}}`, each of which tests its answer when newman runs it.

    Both are variables of the collection, so that it runs as it stands; an environment may give others.
    """
    calls = (("GET", "Read something"), ("POST", "Send something"), ("DELETE", "Remove something"))
    items = [_runnable(method, name, number) for number, (method, name) in enumerate(calls, start=1)]
    variables = [{"key": "baseUrl", "value": base_url}, {"key": "apiKey", "value": ""}]
    info = _info(PRACTICE_RUN, "Three requests to the practice API.")
    return {"info": info, "item": items, "auth": _auth(), "variable": variables}


def environment_of(random: Random, base_url: str) -> list[dict[str, Any]]:
    """The values of an environment."""
    values = {
        "baseUrl": base_url,
        "apiKey": "",
        "region": random.choice(("eu", "us", "ap")),
        "pageSize": str(random.randint(1, 10) * 10),
    }
    return [{"key": key, "value": value, "enabled": True, "type": "default"} for key, value in values.items()]


def _info(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "description": description, "schema": _SCHEMA}


def _auth() -> dict[str, Any]:
    values = {"key": "X-Api-Key", "value": "{{apiKey}}", "in": "header"}
    return {
        "type": "apikey",
        "apikey": [{"key": key, "value": value, "type": "string"} for key, value in values.items()],
    }


def _sentence(random: Random) -> str:
    return f"{' '.join(random.choices(_WORDS, k=random.randint(8, 30)))}.".capitalize()


def _url(*path: str) -> dict[str, Any]:
    return {"raw": "/".join(("{{baseUrl}}", *path)), "host": ["{{baseUrl}}"], "path": list(path)}


def _request_item(random: Random) -> dict[str, Any]:
    method, verb = random.choice(_VERBS)
    noun = random.choice(_WORDS)
    request: dict[str, Any] = {
        "method": method,
        "header": [{"key": "Accept", "value": "application/json"}],
        "url": _url("echo", f"{noun}s", str(random.randint(1, 9999))),
        "description": _sentence(random),
    }
    if method in {"POST", "PUT", "PATCH"}:
        fields = ", ".join(f'"{word}": {random.randint(1, 999)}' for word in random.sample(_WORDS, k=4))
        request["body"] = _json_body(f"{{{fields}}}")
    return {"name": f"{verb} {noun}", "request": request, "response": []}


def _json_body(raw: str) -> dict[str, Any]:
    return {"mode": "raw", "raw": raw, "options": {"raw": {"language": "json"}}}


def _runnable(method: str, name: str, number: int) -> dict[str, Any]:
    script = [
        "pm.test('The status is 200', function () { pm.response.to.have.status(200); });",
        f"pm.test('The method arrived', function () {{ pm.expect(pm.response.json().method).to.eql('{method}'); }});",
    ]
    request: dict[str, Any] = {"method": method, "header": [], "url": _url(*RUN_PATH, str(number))}
    if method == "POST":
        request["body"] = _json_body('{"number": 1}')
    event = {"listen": "test", "script": {"type": "text/javascript", "exec": script}}
    return {"name": name, "event": [event], "request": request, "response": []}


def is_sound_collection(content: dict[str, Any]) -> bool:
    """Whether a collection has a name, and items that are objects, in folders too."""
    info = content.get("info")
    return isinstance(info, dict) and isinstance(info.get("name"), str) and "item" in content and _has_items(content)


def is_sound_change(change: dict[str, Any]) -> bool:
    """Whether a merge patch leaves a sound collection sound."""
    info = change.get("info", {})
    return isinstance(info, dict) and isinstance(info.get("name", ""), str) and _has_items(change)


def is_sound_environment(content: dict[str, Any]) -> bool:
    """Whether an environment has a name, and values that are objects."""
    return isinstance(content.get("name"), str) and _holds_objects(content.get("values", []))


def complete_collection(content: dict[str, Any], owner: str, random: Random) -> None:
    """Give each item of a sound collection, and each saved response, the id that it lacks, and its uid.

    Short forms that the format v2.1 allows are written out, since the API answers with the long ones.
    """
    _write_out(content)
    _write_out_description(content["info"])
    folders = [content]
    while folders:  # a loop, since folders may lie deeper in each other than functions may call themselves
        for item in folders.pop()["item"]:
            _identify(item, owner, random)
            _write_out(item)
            for response in _objects(item.get("response")):
                _identify(response, owner, random)
            if "item" in item:
                folders.append(item)


def completed_values(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The values of a sound environment with what they are by default."""
    return [{"enabled": True, "type": "default", **value} for value in values]


def _identify(thing: dict[str, Any], owner: str, random: Random) -> None:
    ref = thing.get("id")
    if not (isinstance(ref, str) and ref):
        ref = thing["id"] = made_uuid(random)
    thing["uid"] = f"{owner}-{ref}"


def _write_out(thing: dict[str, Any]) -> None:
    """A request that is only its URL, a description with its type, a script in one piece."""
    _write_out_description(thing)
    request = thing.get("request")
    if isinstance(request, str):
        thing["request"] = {"method": "GET", "header": [], "url": request}
    elif isinstance(request, dict):
        _write_out_description(request)
    for event in _objects(thing.get("event")):
        script = event.get("script")
        if isinstance(script, dict) and isinstance(script.get("exec"), str):
            script["exec"] = script["exec"].splitlines()


def _write_out_description(thing: dict[str, Any]) -> None:
    description = thing.get("description")
    if isinstance(description, dict):
        thing["description"] = str(description.get("content", ""))


def _objects(values: Any) -> Iterator[dict[str, Any]]:
    return (value for value in (values if isinstance(values, list) else ()) if isinstance(value, dict))


def _has_items(content: dict[str, Any]) -> bool:
    folders = [content]
    while folders:
        items = folders.pop().get("item", [])
        if not _holds_objects(items):
            return False
        folders += [item for item in items if "item" in item]
    return True


def _holds_objects(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)
