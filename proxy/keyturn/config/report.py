"""What `keyturn check` shows: warnings about secrets within everybody's reach, and the effective configuration."""

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keyturn.config.problems import path_of
from keyturn.config.resolved import Config
from keyturn.config.sources import PASSWORD_FILES
from keyturn.core.errors import Problem

_CLOSE = "`chmod 600` it (in Kubernetes: `defaultMode: 0400`)"

_CREDENTIAL = re.compile(r"auth|cookie|credential|key|password|secret|token", re.IGNORECASE)
"""What is in the name of a field that holds one."""


def warnings(path: Path | None, config: Config) -> tuple[Problem, ...]:
    """What works but should not stay so; none of it keeps a process from starting."""
    found = [*_plain_secrets(path, config), *_open_files(config)]
    if config.store.url.looks_literal:
        found.append(
            Problem(
                "store.url",
                "a user name or password in it is decoded (`%41` is `A`, `+` in the query a blank): if it is meant "
                "literally, write it into `store.password`",
            )
        )
    if config.authentication_required and not config.clients:
        found.append(
            Problem("clients", "authentication is required and no client is given: every request will be answered 401")
        )
    return tuple(found)


def _plain_secrets(path: Path | None, config: Config) -> Iterator[Problem]:
    if path is None or not _is_world_readable(path):
        return
    for place in config.files.plain:
        yield Problem(
            place,
            f"a secret in plain text in a file that everybody can read: `chmod 600 {path}`, or write `${{NAME}}`"
            + (f" or `{place.rpartition('.')[2]}_file`" if place.endswith(("secret", "password")) else ""),
        )


def _open_files(config: Config) -> Iterator[Problem]:
    for name, pool in config.pools.items():
        for index, key in enumerate(pool.keys):
            if key.secret_file and _is_world_readable(key.secret_file):
                place = path_of(("pools", name, "keys", index, "secret_file"))
                yield Problem(place, f"everybody can read {key.secret_file}: {_CLOSE}")
        for path in config.files.listed.get(pool.keys_dir, ()) if pool.keys_dir else ():
            if _is_world_readable(path):
                yield Problem(path_of(("pools", name, "keys_dir")), f"everybody can read {path}: {_CLOSE}")

    for name in PASSWORD_FILES:
        password = getattr(config.store, name)
        if password and _is_world_readable(password):
            yield Problem(f"store.{name}", f"everybody can read {password}: {_CLOSE}")


def _is_world_readable(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def effective(config: Config) -> dict[str, Any]:
    """The configuration with every default filled in, as config.yaml would write it; secrets stand as `…`.

    So does the value of a pool's field by whose name it may be one.
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
