"""Contents of collections and environments: which are sound, and what the API adds to those that callers send."""

from collections.abc import Iterator
from random import Random
from typing import Any

from keyturn.practice.generate import made_uuid


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
