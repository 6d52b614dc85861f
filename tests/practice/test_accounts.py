from keyturn.practice import PracticeSettings
from keyturn.practice.accounts import Accounts

from tests.practice.client import KEY, OTHER, UNKNOWN

ME = ("GET", "me", 1)
LIST = ("GET", "collections", 1)


def accounts_of(**settings: object) -> Accounts:
    """Return accounts with a limit of three."""
    return Accounts(PracticeSettings(**{"limit": 3, "keys": (KEY, OTHER), **settings}))  # type: ignore[arg-type]


def passed(accounts: Accounts, key: str, endpoint: tuple[str, str, int] = ME, tries: int = 5, now: float = 0.0) -> int:
    """Return how many of some simultaneous requests may pass."""
    account = accounts.find(key)
    assert account is not None
    return sum(account.bucket.admit(endpoint, now).allowed for _ in range(tries))


def test_each_key_has_its_own_bucket() -> None:
    """Without users, each key has a bucket of its own."""
    accounts = accounts_of()
    assert (passed(accounts, KEY), passed(accounts, OTHER)) == (3, 3)


def test_keys_of_a_user_share_a_bucket() -> None:
    """The keys of one user share one limit."""
    accounts = accounts_of(users={KEY: "ann", OTHER: "ann"})
    assert (passed(accounts, KEY, tries=2), passed(accounts, OTHER)) == (2, 1)


def test_only_given_keys_are_accepted() -> None:
    """Only given keys are accepted; with none given any key is that is not empty."""
    assert accounts_of().find(UNKNOWN) is None
    assert accounts_of(keys=None).find(UNKNOWN) is not None
    assert accounts_of(keys=None).find("") is None
    assert accounts_of().find("") is None


def test_names_are_not_secrets() -> None:
    """A given key is named by its number, any other by a fingerprint that stays the same."""
    accounts = accounts_of()
    assert (accounts.name_of(KEY), accounts.name_of(OTHER)) == ("key-1", "key-2")
    assert accounts.name_of(UNKNOWN) == accounts.name_of(UNKNOWN)
    assert accounts.name_of(UNKNOWN).startswith("key-")
    assert UNKNOWN not in accounts.name_of(UNKNOWN)


def test_revoke_and_restore() -> None:
    """A revoked key is refused until it is restored, and keeps its count."""
    accounts = accounts_of()
    assert passed(accounts, KEY, tries=2) == 2
    accounts.revoke(KEY)
    assert accounts.find(KEY) is None
    accounts.restore(KEY)
    assert passed(accounts, KEY) == 1


def test_narrow_limits() -> None:
    """A narrow limit counts beside the wide one, for its endpoint only, when switched on."""
    assert passed(accounts_of(limit=20), KEY, LIST, tries=30) == 20
    narrow = accounts_of(limit=20, narrow=True)
    assert passed(narrow, KEY, LIST, tries=30) == 10
    assert passed(narrow, KEY, ME, tries=30) == 10
    assert passed(narrow, KEY, LIST, now=10.0) == 0
    assert passed(narrow, KEY, LIST, tries=30, now=60.0) == 10


def test_a_plan_is_a_users() -> None:
    """A month's plan counts every request that passes, by all keys of the user."""
    accounts = accounts_of(plan=4, users={KEY: "ann", OTHER: "ann"})
    assert passed(accounts, KEY) == 3
    account = accounts.find(OTHER)
    assert account is not None
    assert account.bucket.plan == 1
    assert passed(accounts, OTHER, now=60.0) == 3
    assert account.bucket.plan == 0


def test_disabled_keys() -> None:
    """A disabled key is known but refused, until it is restored."""
    accounts = accounts_of()
    accounts.disable(KEY)
    assert accounts.find(KEY) is not None
    assert accounts.disabled(KEY)
    assert not accounts.disabled(OTHER)
    accounts.restore(KEY)
    assert not accounts.disabled(KEY)
