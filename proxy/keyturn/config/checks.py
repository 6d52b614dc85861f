"""What takes more than one setting, or a look at a file, to see: run on the raw document, beside pydantic's checks.

Each check is a generator of problems over the whole document. It skips what is not of the right form, since pydantic
has reported that already.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from keyturn.config.fields import is_name, is_visible
from keyturn.config.guessable import is_guessable, is_guessable_digest
from keyturn.config.issuers import check_issuers
from keyturn.config.problems import did_you_mean, path_of
from keyturn.config.sources import VARIABLE, KeyFiles, unreadable, why_unreadable
from keyturn.config.tree import Node
from keyturn.config.units import format_duration
from keyturn.config.urls import parse_store_url
from keyturn.core.errors import Problem
from keyturn.core.model import Secret

_CREDENTIALS = ("token", "token_sha256", "certificate", "jwt")


@dataclass(frozen=True, slots=True)
class Subject:
    """What the checks look at: the raw document, and the key files that it names."""

    root: Node
    keys: KeyFiles

    @property
    def open_to_network(self) -> bool:
        """Whether a data listener is not loopback."""
        return any(not listener.loopback for _, listener in self.root["listen"].listeners("127.0.0.1:8080"))

    @property
    def authentication_required(self) -> bool:
        """As `Config.authentication_required`, on the raw document."""
        if self.root["authentication"].text in ("required", "off"):
            return self.root["authentication"].text == "required"
        return bool(self.root["clients"].value) or self.open_to_network

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return self.keys.base


def check(subject: Subject) -> list[Problem]:
    """All problems that are found."""
    return [problem for run in _CHECKS for problem in run(subject)]


def _listeners_differ(subject: Subject) -> Iterator[Problem]:
    data = subject.root["listen"].listeners("127.0.0.1:8080")
    for index, (node, listener) in enumerate(data):
        if any(listener.overlaps(other) for _, other in data[:index]):
            yield node.problem("listens where an earlier entry does already: take one out")
    for node, admin in subject.root["admin"].listeners("127.0.0.1:9090"):
        if any(admin.overlaps(listener) for _, listener in data):
            yield node.problem("the admin listener needs an address of its own: write another port than in `listen`")


def _proxy_protocol_is_trusted(subject: Subject) -> Iterator[Problem]:
    trusted = subject.root["inbound"]["trusted_proxies"]
    for node, listener in subject.root["listen"].listeners("127.0.0.1:8080"):
        if listener.proxy_protocol and not trusted.value:
            yield node.problem("nobody may connect with `proxy_protocol`: write `inbound.trusted_proxies` too")


def _open_network_is_meant(subject: Subject) -> Iterator[Problem]:
    node = subject.root["authentication"]
    if node.text == "off" and subject.open_to_network and not subject.root["allow_anonymous_network"].true:
        yield node.problem(
            "`off` on a listener that is not loopback lets whoever reaches it use the keys: write `required`, "
            "listen on 127.0.0.1, or consent with `allow_anonymous_network: true`"
        )


def _files_can_be_read(subject: Subject) -> Iterator[Problem]:
    tls = subject.root["tls"]
    jwts = [client["jwt"] for client in subject.root["clients"].items()]
    trusted = [jwt[name] for jwt in jwts for name in ("jwks_file", "ca", "bearer_file")]
    for node in (tls["cert"], tls["key"], tls["client_ca"], subject.root["upstream"]["ca"], *trusted):
        path = node.path(subject.base)
        reason = why_unreadable(path) if path else None
        if reason:
            yield node.problem(unreadable(node, subject.base, reason))


def _heads_have_room(subject: Subject) -> Iterator[Problem]:
    inbound = subject.root["inbound"]
    target, head = inbound["max_target"].value or 32_768, inbound["max_head"].value or 65_536
    if isinstance(target, int) and isinstance(head, int) and target >= head:
        place = inbound["max_target" if inbound["max_target"].given else "max_head"]
        yield place.problem("a target is only a part of a head: write a `max_target` that is less than `max_head`")


def _waits_fit(subject: Subject) -> Iterator[Problem]:
    queue = subject.root["queue"]
    wait, ceiling = queue["max_wait"].duration("30s"), queue["max_wait_ceiling"].duration("300s")
    if wait is not None and ceiling is not None and wait > ceiling:
        shown = format_duration(ceiling)
        yield queue["max_wait"].problem(f"longer than `queue.max_wait_ceiling`, {shown}: raise that, or shorten this")


def _store_logins_are_told_once(subject: Subject) -> Iterator[Problem]:
    store = subject.root["store"]
    try:
        url = parse_store_url(store["url"].value if store["url"].given else "memory://")
    except ValueError:
        return
    for whose in ("", "sentinel_"):
        user, password, file = (store[f"{whose}{name}"] for name in ("username", "password", "password_file"))
        given = [node for node in (password, file, user) if node.given]
        if password.given and file.given:
            yield file.problem(f"`store.{whose}password` is given too: keep one of them")
        if user.given and not password.given and not file.given:
            yield user.problem(
                f"a user needs a password: write `store.{whose}password` or `store.{whose}password_file`"
            )
        if given and whose and url.scheme not in ("redis+sentinel", "memory"):
            yield given[0].problem("only `redis+sentinel://` asks sentinels: take this out")
        elif given and url.has_login(whose):
            yield given[0].problem("`store.url` has a user name or a password as well: take it out there")


def _keys_have_one_secret(subject: Subject) -> Iterator[Problem]:
    for _, pool in subject.root["pools"].entries():
        for key in pool["keys"].items():
            if not isinstance(key.value, dict):
                continue
            if key["secret"].given and key["secret_file"].given:
                yield key.problem("has both `secret` and `secret_file`: keep one of them")
            elif not key["secret"].given and not key["secret_file"].given:
                yield key.problem('has no secret: write `secret: "${NAME}"` or `secret_file: /path`')


def _key_names_differ(subject: Subject) -> Iterator[Problem]:
    for _, pool in subject.root["pools"].entries():
        nodes = [key["name"] for key in pool["keys"].items()]
        yield from _repeated(nodes, "another key of this pool has this name: give each its own")
        names = {node.text for node in nodes}
        for path in _listed(pool, subject):
            if path.name in names:
                yield pool["keys_dir"].problem(
                    f"the file `{path.name}` is named as a key in `keys`: rename one of them"
                )


def _secrets_differ(subject: Subject) -> Iterator[Problem]:
    """The same secret twice would let the same upstream budget be spent twice (law 1)."""
    seen: dict[Secret, Node] = {}
    for secret, node in _all_secrets(subject):
        first = seen.setdefault(secret, node)
        if first is not node:
            yield node.problem(f"the same API key as {path_of(first.loc)}: one key stands once, in one pool")


def _all_secrets(subject: Subject) -> Iterator[tuple[Secret, Node]]:
    for _, pool in subject.root["pools"].entries():
        for key in pool["keys"].items():
            path = key["secret_file"].path(subject.base)
            if key["secret"].text and is_visible(key["secret"].text):
                yield Secret(key["secret"].text), key["secret"]
            elif path in subject.keys.secrets:
                yield subject.keys.secrets[path], key["secret_file"]
        for path in _listed(pool, subject):
            yield subject.keys.secrets[path], Node(path, (*pool["keys_dir"].loc, path.name))


def _pools_have_keys(subject: Subject) -> Iterator[Problem]:
    for name, pool in subject.root["pools"].entries():
        if pool["keys"].value or pool["keys_dir"].given or not isinstance(pool.value, dict | None):
            continue
        more = f"set {VARIABLE} (keys separated by commas), or " if name == "default" else ""
        less = "" if name == "default" else f"; only the pool `default` takes its keys from {VARIABLE}"
        yield pool["keys"].problem(f"the pool has no key: {more}write `keys` or `keys_dir`{less}")


def _headers_are_free(subject: Subject) -> Iterator[Problem]:
    key_header = (subject.root["upstream"]["key_header"].text or "X-Api-Key").lower()
    for _, pool in subject.root["pools"].entries():
        seen: set[str] = set()
        for name, node in pool["headers"].entries():
            if name.lower() == key_header:
                yield node.problem("this header carries the API key: take it out")
            elif name.lower() in seen:
                yield node.problem("this header stands twice, in other letters: keep one")
            seen.add(name.lower())


def _callers_differ(subject: Subject) -> Iterator[Problem]:
    nodes = [client["name"] for client in subject.root["clients"].items()]
    yield from _repeated(nodes, "another client has this name: give each its own")
    anonymous = subject.root["anonymous"]["name"].text or "local"
    if not subject.authentication_required:
        for node in nodes:
            if node.text == anonymous:
                yield node.problem("callers without a credential have this name (`anonymous`): give the client another")


def _tokens_differ(subject: Subject) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, client in enumerate(subject.root["clients"].items()):
        for node, digest in _digests(client):
            first = seen.setdefault(digest, index)
            if first != index:
                yield node.problem(f"the same token as clients[{first}]: give each client its own")


def _tokens_are_no_words(subject: Subject) -> Iterator[Problem]:
    """Refuse tokens that anybody can guess, written plainly or as a digest."""
    remedy = "anybody guesses it: write what `keyturn token NAME` makes"
    for client in subject.root["clients"].items():
        if client["token"].text and is_guessable(client["token"].text):
            yield client["token"].problem(remedy)
        if client["token_sha256"].text and is_guessable_digest(client["token_sha256"].text.lower()):
            yield client["token_sha256"].problem(f"the SHA-256 of a word or a placeholder, and {remedy}")
    admin = subject.root["admin_token"]
    if admin.text and is_guessable(admin.text):
        yield admin.problem(remedy)


def _digests(client: Node) -> Iterator[tuple[Node, str]]:
    token, digest = client["token"], client["token_sha256"]
    if token.text and is_visible(token.text):
        yield token, Secret(token.text).digest()
    if digest.text:
        yield digest, digest.text.lower()


def _clients_have_credentials(subject: Subject) -> Iterator[Problem]:
    for client in subject.root["clients"].items():
        if not isinstance(client.value, dict):
            continue
        if client["certificate"].given and not subject.root["tls"]["client_ca"].given:
            yield client["certificate"].problem("certificates are verified by `tls.client_ca`: write that too")
        if subject.authentication_required and not any(client[name].given for name in _CREDENTIALS):
            yield client.problem(
                "has no credential: run `keyturn token NAME` and write the `token_sha256` that it prints, "
                "or write `token`, `certificate` or `jwt`"
            )


def _certificates_differ(subject: Subject) -> Iterator[Problem]:
    nodes = [client["certificate"]["san"] for client in subject.root["clients"].items()]
    yield from _repeated(nodes, "another client has this name in its certificate: give each its own")
    tls = subject.root["tls"]
    optional = tls["client_certificate"]
    if optional.text == "optional" and not tls["client_ca"].given:
        yield optional.problem("nobody verifies certificates: write `tls.client_ca`, or take this out")


def _issuers_agree(subject: Subject) -> Iterator[Problem]:
    yield from check_issuers(subject.root)


def _callers_have_pools(subject: Subject) -> Iterator[Problem]:
    pools = dict(subject.root["pools"].entries())
    if not all(isinstance(pool.value, dict | None) for pool in pools.values()):
        return  # a setting in the place of a pool's name
    names = list(pools)
    callers = list(subject.root["clients"].items())
    if not subject.authentication_required:
        callers.append(subject.root["anonymous"])
    for caller in callers:
        name = caller["pool"].text or "default"
        if names and name not in names and is_name(name):
            guess = did_you_mean(name, names) or f"; there are: {', '.join(names)}"
            yield caller["pool"].problem(f"there is no pool `{name}`{guess}")


def _listed(pool: Node, subject: Subject) -> tuple[Path, ...]:
    folder = pool["keys_dir"].path(subject.base)
    return subject.keys.listed.get(folder, ()) if folder else ()


def _repeated(nodes: Iterable[Node], message: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for node in nodes:
        if node.text and node.text in seen:
            yield node.problem(message)
        seen.add(node.text or "")


_CHECKS: tuple[Callable[[Subject], Iterator[Problem]], ...] = (
    _listeners_differ,
    _proxy_protocol_is_trusted,
    _files_can_be_read,
    _store_logins_are_told_once,
    _pools_have_keys,
    _keys_have_one_secret,
    _key_names_differ,
    _secrets_differ,
    _headers_are_free,
    _heads_have_room,
    _waits_fit,
    _open_network_is_meant,
    _callers_differ,
    _clients_have_credentials,
    _tokens_differ,
    _tokens_are_no_words,
    _certificates_differ,
    _issuers_agree,
    _callers_have_pools,
)
