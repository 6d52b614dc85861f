"""From config.yaml, the environment and key files to a `Config`, or to everything that is wrong with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from keyturn.config.checks import Subject, check
from keyturn.config.contents import digest
from keyturn.config.document import MAX_BYTES, parse
from keyturn.config.fields import BASE
from keyturn.config.interpolation import Interpolation
from keyturn.config.problems import path_of, problems_of
from keyturn.config.resolved import Config, Files
from keyturn.config.sources import KeyFiles, with_environment_keys
from keyturn.config.tree import Node
from keyturn.config.urls import parse_store_url
from keyturn.core.errors import ConfigError, Problem


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the configuration; without a path the defaults, with the keys of `POSTMAN_API_KEYS`.

    Relative paths in the file start from its folder.

    Raises:
        ConfigError: with every problem that was found, in one run.
    """
    data = _read(path) if path else b""
    written, problems = _parse(data, path) if path else ({}, [])
    interpolation = Interpolation(environ)
    settings = interpolation.apply(written)
    plain = tuple(path_of(node.loc) for node in _secrets(Node(settings)) if node.loc not in interpolation.supplied)
    tree, missing = with_environment_keys(settings, environ)
    keys = KeyFiles(path.parent if path else Path())
    keys.collect(Node(tree))
    config, found = _validate(tree, keys.base)
    found += [*missing, *keys.problems, *check(Subject(Node(tree), keys))]
    broken = {path_of(loc) for loc in interpolation.broken}
    problems += interpolation.problems + [problem for problem in found if problem.path not in broken]
    if config is None or problems:
        raise ConfigError(tuple(dict.fromkeys(problems))) from None
    contents = {**({path: digest(data)} if path else {}), **keys.contents}
    config._files = Files(path, keys.secrets, keys.listed, keys.passwords, plain, contents)  # noqa: SLF001  # no setting, so no field
    return config


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError((Problem("", f"{path} cannot be read: {error.strerror}"),)) from None


def _parse(data: bytes, path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Read the document; what is wrong with it as a whole is told with the file's name in place of a setting's."""
    try:
        return parse(data)
    except ConfigError as error:
        raise ConfigError(tuple(Problem(str(path), problem.message) for problem in error.problems)) from None


def _validate(tree: dict[str, Any], base: Path) -> tuple[Config | None, list[Problem]]:
    try:
        return Config.model_validate(tree, context={BASE: base}), []
    except ValidationError as error:
        return None, problems_of(error, Config, tree)


def _secrets(root: Node) -> list[Node]:
    """Every secret that the document itself holds."""
    nodes = [root["admin_token"], *(client["token"] for client in root["clients"].items())]
    nodes += [root["store"]["password"], root["store"]["sentinel_password"]]
    nodes += [key["secret"] for _, pool in root["pools"].entries() for key in pool["keys"].items()]
    return [node for node in nodes if node.text] + (
        [root["store"]["url"]] if _has_password(root["store"]["url"]) else []
    )


def _has_password(url: Node) -> bool:
    try:
        return parse_store_url(url.value).has_password
    except ValueError:
        return False
