import ssl
from typing import Any

import pytest
from keyturn.stores.causes import lost
from redis._parsers import BaseParser
from redis.asyncio import Redis
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import ClusterError, ConnectionError, RedisClusterException  # noqa: A004  # redis-py's own


def said(answer: str) -> Exception:
    """Return what redis-py makes of a server's error."""
    problem: Exception = BaseParser.parse_error(answer)  # type: ignore[no-untyped-call]
    return problem


def wrapped(inner: Exception, outer: Exception) -> Exception:
    """Return an error that was raised while another was handled, as redis-py does."""
    outer.__context__ = inner
    return outer


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        (said("WRONGPASS invalid username-password pair"), "refuses the user name or the password"),
        (said("NOAUTH Authentication required."), "wants a password"),
        (said("ERR AUTH <password> called without any password configured"), "it has no password"),
        (said("NOPERM this user has no permissions to run the 'evalsha' command"), "run the 'evalsha' command"),
        (said("LOADING Redis is loading the dataset in memory"), "still loading"),
        (said("READONLY You can't write against a read only replica."), "it is a replica"),
        (said("MASTERDOWN Link with MASTER is down"), "link to the master"),
        (said("CLUSTERDOWN Hash slot not served"), "does not serve this key"),
        (said("OOM command not allowed when used memory > 'maxmemory'."), "memory is full"),
        (said("ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -OOM no"), "(OOM)"),
        (
            said("ERR Error running script: The user executing the script can't run this command or subcommand"),
            "its ACL",
        ),
        (said("MISCONF Redis is configured to save RDB snapshots"), "cannot save"),
        (said("BUSY Redis is busy running a script."), "somebody's script"),
        (said("MOVED 1 h:1"), "redis+cluster://"),
        (said("ERR DB index is out of range"), "no such database"),
        (said("ERR This instance has cluster support disabled"), "write redis://"),
        (said("ERR Error running script\n  line 3: nil"), "it answered ERR Error running script line 3: nil"),
        (said("STRANGE things"), "it answered STRANGE things"),
        (ClusterError("TTL exhausted."), "the cluster is moving"),
        (AttributeError("'NoneType' object has no attribute 'execute_command'"), "the cluster is moving"),
        (
            wrapped(ConnectionError("Connection has data"), ConnectionError("Error 111 connecting to h:1.")),
            "not reachable (Error 111 connecting to h:1.)",
        ),
        (said("ERR unknown command `SENTINEL`, with args beginning with: `MASTERS`, "), "it is no sentinel"),
        (said("ERR unknown command 'EVALSHA', with args beginning with: 'a' '2' "), "if it is a sentinel"),
        (ConnectionError("Connection not ready"), "not reachable (it closed the connection): see whether it runs, and"),
        (ConnectionError("Connection closed by server."), "whether that port wants TLS"),
        (ConnectionResetError(104, "Connection reset by peer"), "not reachable (it closed the connection): see"),
        (RuntimeError("the handler is closed"), "not reachable (it closed the connection): see"),
        (MasterNotFoundError("No master found for 'main'"), "no sentinel names a master: No master found for 'main'"),
        (TimeoutError(), "no answer within store.timeout"),
        (ConnectionRefusedError(111, "Connect call failed"), "not reachable (connection refused): see"),
        (ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] certificate required"), "refuses our certificate"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "see whether that port speaks TLS"),
    ],
)
def test_a_cause_is_one_line_that_says_what_to_do(problem: Exception, cause: str) -> None:
    """A cause is one line that says where it happened and what to do; callers get another message."""
    error = lost(problem, "redis://h")
    assert error.cause.startswith("redis://h: ")
    assert cause in error.cause
    assert "\n" not in error.cause
    assert "redis" not in error.message


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        (
            wrapped(OSError(111, "Connect call failed"), ConnectionError("Error")),
            "(connection refused)",
        ),
        (wrapped(ssl.SSLError(1, "wrong version number"), ConnectionError("Error")), "no TLS"),
        (wrapped(said("READONLY no"), ConnectionError("The previous master is now a slave")), "it is a replica"),
        (wrapped(said("NOPERM no"), RedisClusterException("Cluster mode is not enabled on this node")), "its ACL"),
        (wrapped(wrapped(said("NOAUTH no"), ConnectionError("x")), RedisClusterException("y")), "wants a password"),
    ],
)
def test_what_came_first_tells_more_than_its_wrapping(problem: Exception, cause: str) -> None:
    """The words of the server or of TLS come before those of the library."""
    assert cause in lost(problem, "redis://h").cause


@pytest.mark.parametrize("where", ["rediss://h", "redis+cluster://h?ssl=true"])
def test_over_tls_the_causes_are_others(where: str) -> None:
    """TLS has causes of its own: a missing client certificate, or a server without TLS."""
    assert "wants a certificate of ours" in lost(ConnectionError("Connection closed by server."), where).cause
    assert "that port speaks no TLS" in lost(TimeoutError(), where).cause


def test_sentinels_that_do_not_answer_are_named() -> None:
    """Sentinels that do not answer are named by address and kind of failure only."""
    settings: dict[str, Any] = {"port": 7, "username": "me", "password": "pa5secret"}
    shown = ", ".join(f"{Redis(host=host, **settings)} - {said('WRONGPASS no')!r}" for host in ("a", "b"))
    told = lost(MasterNotFoundError(f"No master found for 'main' : {shown}"), "redis+sentinel://a,b/main").cause
    assert told.endswith("No master found for 'main' : a:7 (AuthenticationError), b:7 (AuthenticationError)")
