from hashlib import sha256
from pathlib import Path

import pytest
from keyturn.config.checks import is_guessable, is_guessable_digest

from tests.config.samples import MARK, loaded, problems
from tests.process import TOKENS

WORDS = [
    "",
    "test",
    "Test",
    "TEST",
    "token",
    "password",
    "secret",
    "admin",
    "changeme",
    "choose-a-token",
    "PMAK-example",
]


@pytest.mark.parametrize("word", WORDS)
def test_words_that_everybody_tries_are_no_tokens(word: str) -> None:
    """Nor are their digests, with the line end that `echo` adds or without."""
    assert is_guessable(word)
    for text in (word, f"{word}\n"):
        assert is_guessable_digest(sha256(text.encode()).hexdigest())


@pytest.mark.parametrize("digest", ["0" * 64, "f" * 64, "0123456789abcdef" * 4, "deadbeef" * 8])
def test_what_only_stands_for_a_digest_is_none(digest: str) -> None:
    """It lets nobody in, and is meant to be replaced."""
    assert is_guessable_digest(digest)


@pytest.mark.parametrize("token", [*TOKENS.values(), "testimony", "kt-4f7cz"])
def test_other_tokens_are_tokens(token: str) -> None:
    """Also those that begin like a word."""
    assert not is_guessable(token)
    assert not is_guessable_digest(sha256(token.encode()).hexdigest())


def test_such_tokens_are_refused(tmp_path: Path) -> None:
    """Wherever there is one, with what to do and without the token itself."""
    digest = sha256(b"test").hexdigest()
    found = problems(
        tmp_path,
        f"""
        admin_token: changeme
        clients:
          - {{name: a, token: password}}
          - {{name: b, token: "${{CI_TOKEN}}"}}
          - {{name: c, token_sha256: {digest.upper()}}}
        """,
        {"CI_TOKEN": "secret", "POSTMAN_API_KEYS": "one"},
    )
    assert set(found) == {"admin_token", "clients[0].token", "clients[1].token", "clients[2].token_sha256"}
    for message in found.values():
        assert "`keyturn token NAME`" in message
    assert "changeme" not in str(found)
    loaded(tmp_path, "clients: [{name: a, token: kt-4f7cz}]")


TOKEN = f"client-{MARK}"


def test_names_of_clients_differ(tmp_path: Path) -> None:
    """The second of a name is the problem."""
    found = problems(tmp_path, "clients: [{name: a, token: x}, {name: b, token: y}, {name: a, token: z}]")
    assert set(found) == {"clients[2].name"}


def test_names_of_keys_differ_within_their_pool(tmp_path: Path) -> None:
    """Files in `keys_dir` are keys as well; another pool may use the name."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "b").write_text("w")
    found = problems(
        tmp_path,
        """
        pools:
          default:
            keys: [{name: a, secret: x}, {name: a, secret: y}, {name: b, secret: z}]
            keys_dir: keys
          team:
            keys: [{name: a, secret: v}]
        """,
    )
    assert set(found) == {"pools.default.keys[1].name", "pools.default.keys_dir"}
    assert "`b`" in found["pools.default.keys_dir"]


def test_a_client_names_a_pool_that_there_is(tmp_path: Path) -> None:
    """The message names the nearest, or all."""
    text = (
        "clients: [{name: a, token: x, pool: defualt}, {name: b, token: y, pool: zzz}, {name: c, token: z, pool: a b}]"
    )
    found = problems(tmp_path, text)
    assert found["clients[0].pool"] == "there is no pool `defualt`; did you mean `default`?"
    assert found["clients[1].pool"] == "there is no pool `zzz`; there are: default"
    assert "1 to 64" in found["clients[2].pool"]


def test_who_names_no_pool_needs_the_default_one(tmp_path: Path) -> None:
    """Anonymous callers only when there are some."""
    pools = "pools: {team: {keys: [{name: a, secret: x}]}}"
    assert set(problems(tmp_path, f"{pools}\nclients: [{{name: a, token: y}}]")) == {"clients[0].pool"}
    assert set(problems(tmp_path, pools)) == {"anonymous.pool"}
    loaded(tmp_path, f"{pools}\nclients: [{{name: a, token: y, pool: team}}]")


def test_tokens_differ(tmp_path: Path) -> None:
    """However they are written; a client's own token and its digest may be the same."""
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    found = problems(
        tmp_path,
        f"""
        clients:
          - {{name: a, token: x, token_sha256: {digest}}}
          - {{name: b, token_sha256: {digest.upper()}}}
          - {{name: c, token: x}}
        """,
    )
    assert set(found) == {"clients[1].token_sha256", "clients[2].token"}
    assert "clients[0]" in found["clients[2].token"]


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("[{name: a}]", {"pools.default.keys[0]"}),
        ("[{name: a, secret: x, secret_file: f}]", {"pools.default.keys[0]"}),
        ("[{name: a, secret: ''}]", {"pools.default.keys[0].secret"}),
        ("[{name: a, secret_file: empty}]", {"pools.default.keys[0].secret_file"}),
        ("[{name: a, secret_file: none}]", {"pools.default.keys[0].secret_file"}),
        ("[{name: a, secret: '${NONE}'}]", {"pools.default.keys[0].secret"}),
        ("[{name: a, secret: 5}]", {"pools.default.keys[0].secret"}),
    ],
)
def test_a_key_has_one_secret(tmp_path: Path, keys: str, found: set[str]) -> None:
    """In the file or in one of its own, and it is not empty."""
    (tmp_path / "f").write_text("y")
    (tmp_path / "empty").write_text("")
    assert set(problems(tmp_path, f"pools: {{default: {{keys: {keys}}}}}")) == found


def test_one_key_stands_once(tmp_path: Path) -> None:
    """Twice, in whatever pools, its budget would be spent twice (law 1)."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "c").write_text(MARK)
    found = problems(
        tmp_path,
        f"""
        pools:
          default: {{keys: [{{name: a, secret: {MARK}}}, {{name: b, secret_file: keys/c}}]}}
          team: {{keys_dir: keys}}
        """,
    )
    assert set(found) == {"pools.default.keys[1].secret_file", "pools.team.keys_dir.c"}
    assert "pools.default.keys[0].secret" in found["pools.team.keys_dir.c"]


def test_a_pool_has_keys(tmp_path: Path) -> None:
    """The message names the variable that gives them; a folder for keys may be empty."""
    found = problems(tmp_path, "pools: {default: {}, team: {keys: []}}", {})
    assert "set POSTMAN_API_KEYS" in found["pools.default.keys"]
    assert "only the pool `default`" in found["pools.team.keys"]
    (tmp_path / "keys").mkdir()
    assert not loaded(tmp_path, "pools: {default: {keys_dir: keys}}", {}).has_keys


def test_a_wait_is_at_most_the_ceiling(tmp_path: Path) -> None:
    """Settings that are left out have their defaults in both."""
    assert "5m" in problems(tmp_path, "queue: {max_wait: 10m}")["queue.max_wait"]
    assert "10s" in problems(tmp_path, "queue: {max_wait_ceiling: 10s}")["queue.max_wait"]
    assert loaded(tmp_path, "queue: {max_wait: 10m, max_wait_ceiling: 10m}").queue.max_wait == 600_000_000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("admin: 127.0.0.1:8080", {"admin"}),
        ("listen: [127.0.0.1:1, 127.0.0.1:1]", {"listen[1]"}),
        ("listen: 127.0.0.1:9090", {"admin"}),
        ("{listen: unix:/a, admin: unix:/a}", {"admin"}),
        ("{listen: [127.0.0.1:1, nonsense, 127.0.0.1:2], admin: 127.0.0.1:2}", {"listen[1]", "admin"}),
    ],
)
def test_listeners_differ(tmp_path: Path, text: str, found: set[str]) -> None:
    """Each has an address of its own."""
    assert set(problems(tmp_path, text)) == found


def test_the_proxy_protocol_needs_trusted_proxies(tmp_path: Path) -> None:
    """Nobody else may connect."""
    text = "listen: [127.0.0.1:1, {address: 127.0.0.1:2, proxy_protocol: true}]\n"
    assert "inbound.trusted_proxies" in problems(tmp_path, text)["listen[1]"]
    assert loaded(tmp_path, f"{text}inbound: {{trusted_proxies: [unix]}}").listen[1].proxy_protocol


def test_port_0_differs_from_itself(tmp_path: Path) -> None:
    """The system chooses two."""
    loaded(tmp_path, "{listen: 127.0.0.1:0, admin: 127.0.0.1:0}")


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[127.0.0.1:1, '[::]:2']", "10.1.2.3:1"])
def test_an_open_proxy_needs_consent(tmp_path: Path, listen: str) -> None:
    """Otherwise whoever reaches it would use the keys."""
    text = f"listen: {listen}\nauthentication: off\n"
    assert "allow_anonymous_network" in problems(tmp_path, text)["authentication"]
    assert not loaded(tmp_path, f"{text}allow_anonymous_network: true").authentication_required
    assert not loaded(tmp_path, "authentication: off").authentication_required


@pytest.mark.parametrize("text", ["clients: [{name: a}]", "authentication: required\nclients: [{name: a, weight: 2}]"])
def test_a_client_has_a_credential(tmp_path: Path, text: str) -> None:
    """As long as one is required."""
    assert "keyturn token" in problems(tmp_path, text)["clients[0]"]
    loaded(tmp_path, "authentication: off\nclients: [{name: a}]")


def test_other_credentials_than_tokens_are_credentials(tmp_path: Path) -> None:
    """A certificate needs who verifies it."""
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("PEM")
    jwt = "{issuer: 'https://i', audience: a, subject: s}"
    clients = f"clients: [{{name: a, jwt: {jwt}}}, {{name: b, certificate: {{san: x}}}}]"
    assert set(problems(tmp_path, clients)) == {"clients[1].certificate"}
    loaded(tmp_path, f"{clients}\ntls: {{cert: cert, key: key, client_ca: ca}}")


def test_a_client_is_not_called_as_the_anonymous_are(tmp_path: Path) -> None:
    """They would share one place in the queue."""
    text = "authentication: off\nclients: [{name: local, token: x}]"
    assert set(problems(tmp_path, text)) == {"clients[0].name"}
    loaded(tmp_path, f"{text}\nanonymous: {{name: other}}")
    loaded(tmp_path, "clients: [{name: local, token: x}]")


def test_files_can_be_read(tmp_path: Path) -> None:
    """Certificates, their keys, authorities."""
    found = problems(tmp_path, f"tls: {{cert: {MARK}, key: b, client_ca: c}}\nupstream: {{ca: d}}")
    assert set(found) == {"tls.cert", "tls.key", "tls.client_ca", "upstream.ca"}


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ("{x-api-key: a}", {"pools.default.headers.x-api-key"}),
        ("{X-A: a, x-a: b}", {"pools.default.headers.x-a"}),
        ("{Connection: a}", {"pools.default.headers.Connection"}),
        ("{X-A: 'a\u00fc'}", {"pools.default.headers.X-A"}),
        ("{'X A': a}", {'pools.default.headers["…"]'}),
    ],
)
def test_headers_are_free_to_be_set(tmp_path: Path, headers: str, found: set[str]) -> None:
    """Not the key's, not the proxy's own, none twice."""
    assert set(problems(tmp_path, f"pools: {{default: {{headers: {headers}}}}}")) == found


def test_another_key_header_can_be_set(tmp_path: Path) -> None:
    """The one that carries the key cannot."""
    text = "upstream: {key_header: X-Key}\npools: {default: {headers: {%s: a}}}"
    loaded(tmp_path, text % "X-Other")
    assert set(problems(tmp_path, text % "x-key")) == {"pools.default.headers.x-key"}


@pytest.mark.parametrize(
    "text",
    [
        "clients: 5",
        "clients: [5, [], null]",
        "pools: 5",
        "pools: {default: 5, a: [], b: {keys: 5}, c: {keys: [5]}, d: {headers: 5}, e: {keys_dir: []}}",
        "{listen: {a: b}, admin: []}",
        "{tls: 5, upstream: [], queue: 5, anonymous: 5}",
        "queue: {max_wait: [], max_wait_ceiling: {}}",
        'clients: [{name: "\\ud800", token: "\\ud800", pool: "\\ud800"}]',
        'pools: {default: {keys: [{name: a, secret: "\\ud800"}, {name: b, secret_file: "\\0"}], keys_dir: "\\0"}}',
    ],
)
def test_nothing_in_the_wrong_place_is_in_the_way(tmp_path: Path, text: str) -> None:
    """Checks skip what is not of the right form; that is reported."""
    assert problems(tmp_path, text)


def test_names_in_certificates_differ(tmp_path: Path) -> None:
    """One name is one client's; and somebody has to verify what is shown."""
    (tmp_path / "pem").write_text("PEM")
    clients = "clients: [{name: a, certificate: {san: x}}, {name: b, certificate: {san: x}}]"
    found = problems(tmp_path, f"{clients}\ntls: {{cert: pem, key: pem, client_ca: pem}}")
    assert set(found) == {"clients[1].certificate.san"}
    found = problems(tmp_path, "tls: {cert: pem, key: pem, client_certificate: optional}")
    assert set(found) == {"tls.client_certificate"}
    loaded(tmp_path, "tls: {cert: pem, key: pem, client_ca: pem, client_certificate: optional}")


def test_files_of_an_issuer_can_be_read(tmp_path: Path) -> None:
    """As all others."""
    jwt = "{issuer: i, audience: a, subject: s, jwks_file: nowhere}"
    assert set(problems(tmp_path, f"clients: [{{name: a, jwt: {jwt}}}]")) == {"clients[0].jwt.jwks_file"}


SENTINEL = "redis+sentinel://h/main"


@pytest.mark.parametrize(
    ("store", "place", "message"),
    [
        ("{url: 'redis://h', password: p, password_file: /etc/hostname}", "store.password_file", "keep one of them"),
        ("{url: 'redis://h', username: u}", "store.username", "`store.password_file`"),
        ("{url: 'redis://:p@h', password: p}", "store.password", "delete it there"),
        ("{url: 'redis://u:p@h', username: u, password: p}", "store.password", "delete it there"),
        ("{url: 'redis://h?password=p', password_file: /etc/hostname}", "store.password_file", "delete it there"),
        ("{url: 'redis://h', sentinel_password: p}", "store.sentinel_password", "only `redis+sentinel://`"),
        (
            f"{{url: '{SENTINEL}?sentinel_password=p', sentinel_password: p}}",
            "store.sentinel_password",
            "delete it there",
        ),
        (f"{{url: '{SENTINEL}', sentinel_username: p}}", "store.sentinel_username", "`store.sentinel_password`"),
        ("{url: 'redis://h', password: 5}", "store.password", "in quotes"),
        ("{url: 'redis://h', password: ''}", "store.password", "is empty"),
        ("{url: 'redis://h', password_file: none}", "store.password_file", "cannot be read: No such file"),
        ("{url: 'redis://u@h', password: p}", "store.url", "both apart, in `store.username` and `store.password`"),
    ],
)
def test_a_login_of_the_store_is_told_once(tmp_path: Path, store: str, place: str, message: str) -> None:
    """In the URL or apart, as a value or in a file."""
    assert message in problems(tmp_path, f"store: {store}")[place]


def test_a_file_in_utf_16_is_a_problem(tmp_path: Path) -> None:
    """Certificates are checked like secrets, and each kind of file is."""
    (tmp_path / "ca").write_text("\ufeffcertificate", encoding="utf-16-le")
    assert "UTF-16" in problems(tmp_path, "upstream: {ca: ca}")["upstream.ca"]
    assert "UTF-16" in problems(tmp_path, "store: {url: 'redis://h', password_file: ca}")["store.password_file"]
