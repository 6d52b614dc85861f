"""Checks that take more than one setting, or a look at a file, on the raw document, beside pydantic's checks.

Each check is a generator of problems over the whole document. It skips values of the wrong form, which pydantic has
already reported.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from keyturn.config.fields import is_name, is_visible
from keyturn.config.files import VARIABLE, KeyFiles, unreadable, why_unreadable
from keyturn.config.problems import Node, did_you_mean, path_of
from keyturn.config.units import format_duration
from keyturn.config.urls import check_issuers, parse_store_url
from keyturn.core.errors import Problem
from keyturn.core.model import Secret

_GUESSABLE_WORDS = """
    abc abc123 admin admin123 administrator api api-key api-token api_key api_token apikey bearer ci ci-token changeit
    changeme change-me change_me choose-a-token client client-token crawler credential default demo demo-token dev
    development dummy empty example fake foo foobar guest hello key keyturn letmein local localhost master monkey
    mysecret my-secret my-token mytoken newman none null password password1 password123 passwd pass pipeline
    placeholder portal portal-token postman prod production proxy qwerty replace-me replaceme root sample secret
    secret123 sesame staging string tbd test test123 test-token testing testtoken todo token token123 undefined user
    username welcome xxx xxxx your-api-key your-secret your-token your_token yourtoken 123 1234 12345 123456 1234567
    12345678 123456789 1234567890 0000 00000000 11111111 <token> <your-token> ${token} … ... PMAK PMAK- PMAK-…
    PMAK-... PMAK-xxx PMAK-example PMAK-example-a PMAK-example-b PMAK-one PMAK-two
"""
_PLACEHOLDER_DIGESTS = frozenset({"0123456789abcdef" * 4, "deadbeef" * 8, "1234567890" * 6 + "1234"})
"""Digests that are obvious placeholders."""


def is_guessable(token: str) -> bool:
    """Whether a token is among those that are guessed first, in any case."""
    return token.lower() in {word.lower() for word in _guessable_words()}


def is_guessable_digest(digest: str) -> bool:
    """Whether a (lower-case) SHA-256 is a placeholder or that of such a token, with or without a line end."""
    return digest in _guessable_digests() or len(set(digest)) == 1 or digest in _PLACEHOLDER_DIGESTS


@lru_cache(maxsize=1)
def _guessable_words() -> frozenset[str]:
    return frozenset(_GUESSABLE_WORDS.split()) | {""}


@lru_cache(maxsize=1)
def _guessable_digests() -> frozenset[str]:
    spellings = {
        spelt for word in _guessable_words() for spelt in (word, word.lower(), word.upper(), word.capitalize())
    }
    return frozenset(sha256(f"{word}{end}".encode()).hexdigest() for word in spellings for end in ("", "\n", "\r\n"))


_CREDENTIALS = ("token", "token_sha256", "certificate", "jwt")


@dataclass(frozen=True, slots=True)
class CheckedDocument:
    """The raw document that is checked, and the key files that it names."""

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
        """The directory that relative paths start from."""
        return self.keys.base


def check(document: CheckedDocument) -> list[Problem]:
    """Run all checks and return the problems."""
    return [problem for run in _CHECKS for problem in run(document)]


def _listeners_differ(document: CheckedDocument) -> Iterator[Problem]:
    data = document.root["listen"].listeners("127.0.0.1:8080")
    for index, (node, listener) in enumerate(data):
        if any(listener.overlaps(other) for _, other in data[:index]):
            yield node.problem("is the same address as an earlier entry: delete one of them")
    for node, admin in document.root["admin"].listeners("127.0.0.1:9090"):
        if any(admin.overlaps(listener) for _, listener in data):
            yield node.problem("the admin listener needs its own address: write another port than in `listen`")


def _proxy_protocol_is_trusted(document: CheckedDocument) -> Iterator[Problem]:
    trusted = document.root["inbound"]["trusted_proxies"]
    for node, listener in document.root["listen"].listeners("127.0.0.1:8080"):
        if listener.proxy_protocol and not trusted.value:
            yield node.problem(
                "with `proxy_protocol` only trusted proxies may connect: write `inbound.trusted_proxies`, too"
            )


def _open_network_is_meant(document: CheckedDocument) -> Iterator[Problem]:
    node = document.root["authentication"]
    if node.text == "off" and document.open_to_network and not document.root["allow_anonymous_network"].true:
        yield node.problem(
            "`off` on a listener that is not loopback lets everybody who reaches it use the keys: write `required`, "
            "listen on 127.0.0.1, or consent with `allow_anonymous_network: true`"
        )


def _files_can_be_read(document: CheckedDocument) -> Iterator[Problem]:
    tls = document.root["tls"]
    jwts = [client["jwt"] for client in document.root["clients"].items()]
    trusted = [jwt[name] for jwt in jwts for name in ("jwks_file", "ca", "bearer_file")]
    for node in (tls["cert"], tls["key"], tls["client_ca"], document.root["upstream"]["ca"], *trusted):
        path = node.path(document.base)
        reason = why_unreadable(path) if path else None
        if reason:
            yield node.problem(unreadable(node, document.base, reason))


def _heads_have_room(document: CheckedDocument) -> Iterator[Problem]:
    inbound = document.root["inbound"]
    target, head = inbound["max_target"].value or 32_768, inbound["max_head"].value or 65_536
    if isinstance(target, int) and isinstance(head, int) and target >= head:
        place = inbound["max_target" if inbound["max_target"].given else "max_head"]
        yield place.problem("a request target is part of the head: write a `max_target` that is less than `max_head`")


def _waits_fit(document: CheckedDocument) -> Iterator[Problem]:
    queue = document.root["queue"]
    wait, ceiling = queue["max_wait"].duration("30s"), queue["max_wait_ceiling"].duration("300s")
    if wait is not None and ceiling is not None and wait > ceiling:
        shown = format_duration(ceiling)
        yield queue["max_wait"].problem(f"longer than `queue.max_wait_ceiling`, {shown}: raise that, or shorten this")


def _store_logins_are_told_once(document: CheckedDocument) -> Iterator[Problem]:
    store = document.root["store"]
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
            yield given[0].problem("only `redis+sentinel://` uses sentinels: delete this")
        elif given and url.has_login(whose):
            yield given[0].problem("`store.url` has a user name or a password as well: delete it there")


def _keys_have_one_secret(document: CheckedDocument) -> Iterator[Problem]:
    for _, pool in document.root["pools"].entries():
        for key in pool["keys"].items():
            if not isinstance(key.value, dict):
                continue
            if key["secret"].given and key["secret_file"].given:
                yield key.problem("has both `secret` and `secret_file`: keep one of them")
            elif not key["secret"].given and not key["secret_file"].given:
                yield key.problem('has no secret: write `secret: "${NAME}"` or `secret_file: /path`')


def _key_names_differ(document: CheckedDocument) -> Iterator[Problem]:
    for _, pool in document.root["pools"].entries():
        nodes = [key["name"] for key in pool["keys"].items()]
        yield from _repeated(nodes, "another key of this pool has this name: give each its own")
        names = {node.text for node in nodes}
        for path in _key_files_of(pool, document):
            if path.name in names:
                yield pool["keys_dir"].problem(
                    f"the file `{path.name}` has the name of a key in `keys`: rename one of them"
                )


def _secrets_differ(document: CheckedDocument) -> Iterator[Problem]:
    """The same secret twice would let the same upstream budget be spent twice (law 1)."""
    seen: dict[Secret, Node] = {}
    for secret, node in _all_secrets(document):
        first = seen.setdefault(secret, node)
        if first is not node:
            yield node.problem(f"the same API key as {path_of(first.loc)}: write each key once, in one pool")


def _all_secrets(document: CheckedDocument) -> Iterator[tuple[Secret, Node]]:
    for _, pool in document.root["pools"].entries():
        for key in pool["keys"].items():
            path = key["secret_file"].path(document.base)
            if key["secret"].text and is_visible(key["secret"].text):
                yield Secret(key["secret"].text), key["secret"]
            elif path in document.keys.secrets:
                yield document.keys.secrets[path], key["secret_file"]
        for path in _key_files_of(pool, document):
            yield document.keys.secrets[path], Node(path, (*pool["keys_dir"].loc, path.name))


def _pools_have_keys(document: CheckedDocument) -> Iterator[Problem]:
    for name, pool in document.root["pools"].entries():
        if pool["keys"].value or pool["keys_dir"].given or not isinstance(pool.value, dict | None):
            continue
        more = f"set {VARIABLE} (keys separated by commas), or " if name == "default" else ""
        less = "" if name == "default" else f"; only the pool `default` takes its keys from {VARIABLE}"
        yield pool["keys"].problem(f"the pool has no key: {more}write `keys` or `keys_dir`{less}")


def _headers_are_free(document: CheckedDocument) -> Iterator[Problem]:
    key_header = (document.root["upstream"]["key_header"].text or "X-Api-Key").lower()
    for _, pool in document.root["pools"].entries():
        seen: set[str] = set()
        for name, node in pool["headers"].entries():
            if name.lower() == key_header:
                yield node.problem("this header carries the API key: delete it")
            elif name.lower() in seen:
                yield node.problem("this header occurs twice, in different case: keep one")
            seen.add(name.lower())


def _callers_differ(document: CheckedDocument) -> Iterator[Problem]:
    nodes = [client["name"] for client in document.root["clients"].items()]
    yield from _repeated(nodes, "another client has this name: give each its own")
    anonymous = document.root["anonymous"]["name"].text or "local"
    if not document.authentication_required:
        for node in nodes:
            if node.text == anonymous:
                yield node.problem("callers without a credential have this name (`anonymous`): give the client another")


def _tokens_differ(document: CheckedDocument) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, client in enumerate(document.root["clients"].items()):
        for node, digest in _token_digests(client):
            first = seen.setdefault(digest, index)
            if first != index:
                yield node.problem(f"the same token as clients[{first}]: give each client its own")


def _tokens_are_no_words(document: CheckedDocument) -> Iterator[Problem]:
    """Reject tokens that are easily guessed, in plain text or as a digest."""
    remedy = "it is easily guessed: write a token that `keyturn token NAME` makes"
    for client in document.root["clients"].items():
        if client["token"].text and is_guessable(client["token"].text):
            yield client["token"].problem(remedy)
        if client["token_sha256"].text and is_guessable_digest(client["token_sha256"].text.lower()):
            yield client["token_sha256"].problem(f"the SHA-256 of a common word or a placeholder: {remedy}")
    admin = document.root["admin_token"]
    if admin.text and is_guessable(admin.text):
        yield admin.problem(remedy)


def _token_digests(client: Node) -> Iterator[tuple[Node, str]]:
    token, digest = client["token"], client["token_sha256"]
    if token.text and is_visible(token.text):
        yield token, Secret(token.text).digest()
    if digest.text:
        yield digest, digest.text.lower()


def _clients_have_credentials(document: CheckedDocument) -> Iterator[Problem]:
    for client in document.root["clients"].items():
        if not isinstance(client.value, dict):
            continue
        if client["certificate"].given and not document.root["tls"]["client_ca"].given:
            yield client["certificate"].problem("certificates are verified by `tls.client_ca`: write that, too")
        if document.authentication_required and not any(client[name].given for name in _CREDENTIALS):
            yield client.problem(
                "has no credential: run `keyturn token NAME` and write the `token_sha256` that it prints, "
                "or write `token`, `certificate` or `jwt`"
            )


def _certificates_differ(document: CheckedDocument) -> Iterator[Problem]:
    nodes = [client["certificate"]["san"] for client in document.root["clients"].items()]
    yield from _repeated(nodes, "another client has this name in its certificate: give each its own")
    tls = document.root["tls"]
    optional = tls["client_certificate"]
    if optional.text == "optional" and not tls["client_ca"].given:
        yield optional.problem("certificates are not verified without `tls.client_ca`: write that, or delete this")


def _issuers_agree(document: CheckedDocument) -> Iterator[Problem]:
    yield from check_issuers(document.root)


def _callers_have_pools(document: CheckedDocument) -> Iterator[Problem]:
    pools = dict(document.root["pools"].entries())
    if not all(isinstance(pool.value, dict | None) for pool in pools.values()):
        return  # a setting in the place of a pool's name
    names = list(pools)
    callers = list(document.root["clients"].items())
    if not document.authentication_required:
        callers.append(document.root["anonymous"])
    for caller in callers:
        name = caller["pool"].text or "default"
        if names and name not in names and is_name(name):
            guess = did_you_mean(name, names) or f"; there are: {', '.join(names)}"
            yield caller["pool"].problem(f"there is no pool `{name}`{guess}")


def _key_files_of(pool: Node, document: CheckedDocument) -> tuple[Path, ...]:
    folder = pool["keys_dir"].path(document.base)
    return document.keys.listed.get(folder, ()) if folder else ()


def _repeated(nodes: Iterable[Node], message: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for node in nodes:
        if node.text and node.text in seen:
            yield node.problem(message)
        seen.add(node.text or "")


_CHECKS: tuple[Callable[[CheckedDocument], Iterator[Problem]], ...] = (
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
