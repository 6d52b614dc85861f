import ssl

import pytest

from proxy.stores.causes import lost
from proxy.stores.routes import NoMaster
from proxy.stores.wire import Refused


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        (Refused("WRONGPASS invalid username-password pair"), "refuses the user name or the password"),
        (Refused("NOAUTH Authentication required."), "wants a password"),
        (Refused("ERR AUTH <password> called without any password configured"), "it has no password"),
        (Refused("NOPERM this user has no permissions to run the 'evalsha' command"), "run the 'evalsha' command"),
        (Refused("LOADING Redis is loading the dataset in memory"), "still loading"),
        (Refused("READONLY You can't write against a read only replica."), "it is a replica"),
        (Refused("MASTERDOWN Link with MASTER is down"), "link to the master"),
        (Refused("CLUSTERDOWN Hash slot not served"), "does not serve this key"),
        (Refused("OOM command not allowed when used memory > 'maxmemory'."), "memory is full"),
        (Refused("ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -OOM no"), "(OOM)"),
        (Refused("ERR Error running script: The user executing the script can't run this: ACL failure"), "its ACL"),
        (Refused("MISCONF Redis is configured to save RDB snapshots"), "cannot save"),
        (Refused("MOVED 1 h:1"), "redis+cluster://"),
        (Refused("ERR DB index is out of range"), "no such database"),
        (Refused("ERR Error running script\n  line 3: nil"), "it answered ERR Error running script line 3: nil"),
        (NoMaster("h:1 knows no master main"), "no sentinel names a master: h:1 knows"),
        (TimeoutError(), "no answer within store.timeout"),
        (ConnectionRefusedError(111, "Connect call failed"), "not reachable"),
        (ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] certificate required"), "refuses our certificate"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "see whether that port speaks TLS"),
    ],
)
def test_a_cause_is_one_line_that_says_what_to_do(problem: Exception, cause: str) -> None:
    """It begins with where it happened; callers read something else."""
    error = lost(problem, "redis://h")
    assert error.cause.startswith("redis://h: ")
    assert cause in error.cause
    assert "\n" not in error.cause
    assert "redis" not in error.message
