import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import SECOND
from keyturn.web.status.model import ClientStatus

from tests.observability.samples import AT, busy, document, quiet

DOCS = Path(__file__).parent.parent.parent.parent / "docs" / "status.md"


def leaves(value: Any, path: str = "") -> set[str]:
    """The paths of all fields of a document, lists as `[]`."""
    if isinstance(value, dict):
        return {path} | {leaf for name, inner in value.items() for leaf in leaves(inner, f"{path}.{name}".lstrip("."))}
    if isinstance(value, list):
        return {path} | {leaf for inner in value for leaf in leaves(inner, f"{path}[]")}
    return {path}


def written(path: str) -> str:
    """The name of a field, as the documentation's tables may write it."""
    return path.rpartition(".")[2].removesuffix("[]")


def test_the_document_names_its_version_and_moment() -> None:
    """A reader looks at the version first."""
    content = document(quiet())
    assert content["version"] == 2
    assert content["at"] == "2026-09-21T14:13:20.000Z"
    assert datetime.fromisoformat(content["at"]).timestamp() * SECOND == AT


def test_every_field_is_documented() -> None:
    """Each name stands in docs/status.md, marked as code."""
    text = DOCS.read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    reasons = {f"refused.{reason}" for reason in document(busy())["refused"]}
    fields = {written(path) for path in leaves(document(busy(out=True))) if path and path not in reasons}
    assert fields - named == set()


def test_tokens_are_told_in_all_their_states() -> None:
    """What cools is the sum of what returns."""
    limit = document(busy())["pools"][0]["quotas"][0]["limits"][0]
    assert (limit["name"], limit["size"], limit["window"]) == ("60/60s", 60, 60.0)
    assert (limit["available"], limit["in_use"], limit["cooling_down"]) == (14, 4, 42)
    assert sum(entry["tokens"] for entry in limit["returns"]) == 42


def test_a_client_has_a_share_and_a_fair_share() -> None:
    """Fair shares follow the weights of active clients; an idle client has none."""
    clients = {client["name"]: client for client in document(busy())["pools"][0]["clients"]}
    assert clients["portal"]["fair_share"] == 0.6
    assert clients["portal"]["share"] == round(96 / 179, 4)
    assert clients["reports"]["fair_share"] is None


def test_a_client_sums_up_its_queues() -> None:
    """All waiting requests, the longest wait, and the shortest estimated wait."""
    clients = {client["name"]: client for client in document(busy())["pools"][0]["clients"]}
    crawler = clients["crawler"]
    assert (crawler["waiting"], crawler["longest_wait"], crawler["estimated_wait"]) == (158, 29.0, 1.4)
    assert crawler["queues"][1]["limits"] == ["60/60s", "10/10s"]
    assert (clients["pipeline"]["estimated_wait"], clients["pipeline"]["queues"][0]["pinned"]) == (None, "team-d")


def test_without_leases_there_are_no_shares() -> None:
    """Nothing is divided by nothing."""
    snapshot = quiet()
    pool = replace(snapshot.pools[0], clients=(ClientStatus("ci", 1, 0),))
    (client,) = document(replace(snapshot, pools=(pool,)))["pools"][0]["clients"]
    assert (client["share"], client["fair_share"], client["estimated_wait"], client["longest_wait"]) == (
        None,
        None,
        None,
        0.0,
    )


def test_what_is_not_known_is_null() -> None:
    """No reload yet, no end of a state, no month's plan."""
    content = document(quiet())
    assert content["reload"] is None
    key = content["pools"][0]["keys"][0]
    assert (key["until"], key["month_remaining"], key["reason"]) == (None, None, "")


def test_a_limit_that_is_higher_upstream_is_told() -> None:
    """With the setting that would make use of it."""
    pool = replace(quiet().pools[0], higher=[HigherLimit(0, "60/60s", 60, 300)])
    content = document(replace(quiet(), pools=(pool,)))["pools"][0]
    setting = f"pools.{pool.name}.limits[0].requests: 300"
    assert content["upstream_limits"] == [{"limit": "60/60s", "configured": 60, "reported": 300, "setting": setting}]
    assert document(quiet())["pools"][0]["upstream_limits"] == []
