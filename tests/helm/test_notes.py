from typing import Any

import pytest

from tests.helm.charts import notes

ADDRESS = "http://shop-keyturn.default:80"


def test_how_to_call_it() -> None:
    """The notes tell the gateway's address, how to send a token, and where its health is."""
    said = notes({"config": {"listen": "0.0.0.0:7000", "admin": "0.0.0.0:7001"}})
    assert f"Keyturn listens at {ADDRESS}. Use it instead of https://api.getpostman.com" in said
    assert f'curl -H "X-Api-Key: <token>" {ADDRESS}/me' in said
    assert "port-forward deploy/shop-keyturn 7001" in said


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ({"tls": {"existingSecret": "cert"}, "service": {"port": 443}}, "https://shop-keyturn.default:443/me"),
        ({"ingress": {"enabled": True, "host": "a.example"}}, "From outside: http://a.example\n"),
        ({"ingress": {"enabled": True, "host": "a.example", "tlsSecret": "s"}}, "From outside: https://a.example\n"),
    ],
)
def test_addresses_follow_the_values(values: dict[str, Any], address: str) -> None:
    """TLS and an Ingress change where callers go."""
    assert address in notes(values)


def test_how_a_sidecar_is_called() -> None:
    """For sidecars the notes tell the two lines, and the address on the loopback."""
    said = notes({"mode": "sidecar", "redis": {"existingSecret": "r"}, "config": {"listen": "127.0.0.1:7000"}})
    assert 'initContainers:\n    {{- include "keyturn.sidecar" .Subcharts.keyturn | nindent 8 }}' in said
    assert 'volumes:\n    {{- include "keyturn.volumes" .Subcharts.keyturn | nindent 8 }}' in said
    assert "calls http://127.0.0.1:7000" in said


@pytest.mark.parametrize(
    ("sentence", "without", "given"),
    [
        ("NOBODY CAN CALL IT YET", {}, {"config": {"clients": [{"name": "a", "token": "${A}"}]}}),
        (
            "create secret generic shop-keyturn-keys-default --from-file=",
            {},
            {"keys": {"default": {"existingSecret": "mine"}}},
        ),
        ("Tokens are kept in the memory of the pod: only one replica", {}, {"redis": {"existingSecret": "r"}}),
        ("redis.embedded IS FOR TRIALS ONLY", {"redis": {"embedded": True}}, {}),
        (
            "ONLY ONE POD may use these keys",
            {"mode": "sidecar", "sidecar": {"alone": True}},
            {"mode": "sidecar", "redis": {"existingSecret": "r"}},
        ),
    ],
)
def test_what_is_still_to_be_done(sentence: str, without: dict[str, Any], given: dict[str, Any]) -> None:
    """The notes name what is missing, or fit for trials only."""
    assert sentence in notes(without)
    assert sentence not in notes(given)
