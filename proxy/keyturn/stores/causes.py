"""Why the store is lost, in one line that says what to do and shows no secret."""

import re
import ssl
from collections.abc import Iterator

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import AuthenticationError, BusyLoadingError, ClusterError, RedisError, ResponseError
from redis.exceptions import TimeoutError as NoAnswer

from keyturn.core.errors import StoreLost
from keyturn.oserrors import words
from keyturn.trust import refusal

_ADVICE = {
    "WRONGPASS": "it refuses the user name or the password of store.url, or of store.username and store.password",
    "NOAUTH": "it wants a password: write it into store.url, as user:password@, or into store.password",
    "LOADING": "it is still loading its data: wait until it has",
    "READONLY": "it is a replica: name the master in store.url, or use redis+sentinel://",
    "MASTERDOWN": "its link to the master is down, and it may not serve: look at the master",
    "CLUSTERDOWN": "the cluster does not serve this key: see CLUSTER INFO",
    "CROSSSLOT": "the script's keys are on several nodes of the cluster, which is a fault of Keyturn: report it",
    "MOVED": "it is a node of a cluster: write redis+cluster:// in store.url",
    "OOM": "its memory is full: raise its maxmemory",
    "MISCONF": "it cannot save its data and refuses writes: see its log",
    "NOREPLICAS": "too few of its replicas are in step for it to write: see its min-replicas-to-write",
    "BUSY": "it is busy with somebody's script: look at its log",
}
"""Advice by the first word of the server's error."""

_INSIDE = re.compile(r"[ :]-([A-Z]+) ")
"""Redis before 7 wraps the error of a command inside a script: `ERR Error running script (…): …: -OOM …`."""

_NEEDLESS = "it has no password, and store.url has one, or store.password: remove it, or set requirepass"

_PHRASES = {
    "without any password configured": _NEEDLESS,
    "no password is set": _NEEDLESS,
    "DB index": "it has no such database: correct the number in store.url",
    "cluster support disabled": "it is no node of a cluster: write redis:// in store.url",
    "unknown command 'SENTINEL'": "it is no sentinel: name the sentinels, on their own port, or write redis://",
    "unknown command 'EVALSHA'": "it runs no scripts: write redis+sentinel:// if it is a sentinel, else allow EVALSHA",
}
"""Advice by a phrase in an error that begins with ERR."""

_SENTINEL = re.compile(
    r"<redis\.asyncio\.client\.Redis\((?:(?!host=|client\.Redis).)*+host=([^,<]*+),port=(\d++)"
    r"(?:(?!\)>|client\.Redis).)*+\)>\)>\)> - \w++:(\w+)"
)
"""How redis-py shows a sentinel that did not answer, and why."""

_MESSAGE = "The store of the rate limits does not answer. Try again soon; the operator finds the cause in the log."
_CERTIFICATE = ("certificate", "unknown ca", "unknown_ca", "bad_certificate")


def lost(problem: BaseException, where: str) -> StoreLost:
    """The one error of the shared store, made of what went wrong at `where`, a server or the URL without secrets."""
    tls = where.startswith("rediss:") or "ssl=true" in where
    telling = _telling(problem)
    return StoreLost(_MESSAGE, cause=f"{where}: {_cause(telling, tls=tls)}", broke=_broke(telling))


def strange(where: str) -> StoreLost:
    """An answer came that is none."""
    return StoreLost(
        _MESSAGE,
        cause=f"{where}: what it answers is no answer to Keyturn's script: see what stands between, and what it is",
    )


def _telling(problem: BaseException) -> BaseException:
    """The most informative cause of a problem: the server's error or TLS's, else the first cause.

    redis-py wraps the errors that it catches, a cluster's client twice. For a connection that the server has closed,
    it first reports that there is something to read.
    """
    chain = [one for one in _chain(problem) if str(one) not in _CLOSED] or [ConnectionError("closed")]
    said = (one for one in chain if isinstance(one, _SAID) and _code(one))
    return next(said, chain[-1])


_CLOSED = ("Connection has data", "Connection not ready")
_SAID = (ResponseError, AuthenticationError, BusyLoadingError, ssl.SSLError)


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    while isinstance(problem, Exception):
        yield problem
        problem = problem.__cause__ or problem.__context__


def _cause(problem: BaseException, *, tls: bool) -> str:
    match problem:
        case ResponseError() | AuthenticationError() | BusyLoadingError():
            return _refusal(problem)
        case MasterNotFoundError():
            return "no sentinel names a master: " + _line(_SENTINEL.sub(r"\1:\2 (\3)", str(problem)))
        case TimeoutError() | NoAnswer():
            no_tls = "that port speaks no TLS, " if tls else ""
            return f"no answer within store.timeout: see whether it is busy, {no_tls}or the network drops packets"
        case ClusterError() | AttributeError():  # the latter is redis-py's own fault (its issue 4015)
            return "the cluster is moving this key's slot: wait until it has"
        case ssl.SSLError():
            return _tls(problem)
        case _:
            return _unreachable(problem, tls=tls)


def _broke(problem: BaseException) -> bool:
    return isinstance(problem, ConnectionResetError | BrokenPipeError) or "closed" in str(problem)


def _unreachable(problem: BaseException, *, tls: bool) -> str:
    if "max number of clients" in str(problem):
        return "it takes no more connections: raise its maxclients, or see who holds so many"
    if _broke(problem):
        wants = "a certificate of ours (ssl_certfile and ssl_keyfile)" if tls else "TLS (rediss://)"
        return f"not reachable (it closed the connection): see whether it runs, and whether that port wants {wants}"
    why = words(problem) if isinstance(problem, OSError) else _line(problem)
    return f"not reachable ({why}): see whether it runs and store.url is right"


def _refusal(problem: RedisError) -> str:
    """The server's error, which may contain names of users, commands, keys and channels, but no password."""
    code, said = _code(problem), _line(problem)
    inside = _INSIDE.search(said) if code == "ERR" else None
    code = inside[1] if inside else code
    if code == "NOPERM" or "ACL failure" in said or "can't run this command" in said:
        return f"its ACL does not allow what Keyturn needs (docs/shared-store.md lists it): {said}"
    if advice := _ADVICE.get(code):
        return f"{advice} ({code})"
    plain = said.replace("`", "'")
    if advice := next((advice for words, advice in _PHRASES.items() if words in plain), None):
        return advice
    return f"it answered {code} {said}" if not said.startswith(code) else f"it answered {said}"


def _code(problem: BaseException) -> str:
    """The first word of what a server said; redis-py takes it off the text of those that it knows."""
    code = getattr(problem, "status_code", None)
    return str(code) if code else str(problem).partition(" ")[0]


def _tls(problem: ssl.SSLError) -> str:
    said = _line(problem)
    if isinstance(problem, ssl.SSLCertVerificationError):
        advice = "name the CA that signed it, `?ssl_ca_certs=`, and the host that it is for"
        return f"its certificate is refused: {refusal(problem, advice)}"
    if any(word in said.lower() for word in _CERTIFICATE):
        return f"it refuses our certificate ({said}): name one that it accepts, `?ssl_certfile=` and `ssl_keyfile=`"
    return f"no TLS ({said}): see whether that port speaks TLS"


def _line(problem: BaseException | str) -> str:
    return re.sub(r"\s+", " ", str(problem)).strip()[:300] or type(problem).__name__
