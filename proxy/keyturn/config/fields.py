"""Annotated types for the values of settings: how each is validated, shown and described in the JSON Schema."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from keyturn.config.units import (
    DURATION_PATTERN,
    LISTENER_PATTERN,
    Listener,
    format_duration,
    format_listener,
    parse_admin,
    parse_duration,
    parse_listener,
    parse_trusted,
)
from keyturn.config.urls import StoreUrl, parse_store_url, parse_upstream_url
from keyturn.core.forwarded import TrustedAddress
from keyturn.core.model import MILLISECOND, SECOND, Micros, Secret
from keyturn.core.policy import Rule

MASK = "…"
QUOTES = ("'", '"')
DAY: Micros = 86_400 * SECOND
BASE = "base"
"""Key in the validation context of the folder that relative paths start from."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HEADER_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_PERMISSIONS = re.compile(r"0?[0-7]{3}")
_QUERY_NAME = re.compile(r"[A-Za-z0-9._~-]{1,64}")

_PROXY_OWN = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-request-id",
    }
)
"""Fields that the proxy sets itself, and hop-by-hop fields (RFC 9110, section 7.6.1); `Proxy-…` fields are, too."""


class Settings(BaseModel):
    """A section of config.yaml. A name without a value (all its lines commented out) is ignored."""

    model_config = ConfigDict(
        defer_build=True,  # only the whole document is validated, and no section by itself
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=True,
        arbitrary_types_allowed=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty(cls, data: Any) -> Any:
        if data is None:
            return {}
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}
        return data


def written(value: object) -> Any:
    """A default in the notation of config.yaml, validated like any other value."""
    return value


def is_visible(text: str) -> bool:
    """Whether a secret can be sent in a header: visible ASCII without blanks."""
    return _VISIBLE.fullmatch(text) is not None


def is_quoted(text: str) -> bool:
    """Whether a text begins or ends with a quote, which was meant for a shell or YAML and is not part of a secret."""
    return text.startswith(QUOTES) or text.endswith(QUOTES)


def is_name(text: str) -> bool:
    """Whether a text can name a client, a key or a pool."""
    return _NAME.fullmatch(text) is not None


def is_proxy_own(header: str) -> bool:
    """Whether a header field cannot be set by the configuration."""
    return header.lower() in _PROXY_OWN or header.lower().startswith("proxy-")


def is_header_value(text: str) -> bool:
    """Whether a text can be a header's value: printable ASCII, no blank at either end."""
    return _HEADER_VALUE.fullmatch(text) is not None


def _matching(pattern: re.Pattern[str], hint: str) -> tuple[AfterValidator, WithJsonSchema]:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(hint)
        return value

    return AfterValidator(check), WithJsonSchema({"type": "string", "pattern": f"^{pattern.pattern}$"})


def _between(minimum: Micros, maximum: Micros) -> Callable[[object], Micros]:
    def check(value: object) -> Micros:
        duration = parse_duration(value)
        if not minimum <= duration <= maximum:
            raise ValueError(f"write a duration from {format_duration(minimum)} to {format_duration(maximum)}")
        return duration

    return check


def _secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ValueError("write the secret as text, in quotes")  # noqa: TRY004  # pydantic collects ValueErrors only
    if not value.strip():
        raise ValueError("the secret is empty: write it, or name an environment variable as `${NAME}`")
    if not is_visible(value.strip()):
        raise ValueError("a secret is one word of visible ASCII characters: check for blanks, line ends and quotes")
    if is_quoted(value.strip()):
        raise ValueError("quotes stand around the secret itself: take them out (`docker --env-file` keeps them)")
    return Secret(value.strip())


def _password(value: object) -> Secret:
    """A password of another system, which may contain any character: only trailing line ends are removed."""
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ValueError("write the password as text, in quotes")  # noqa: TRY004  # as above
    if not value.strip("\r\n"):
        raise ValueError("the password is empty: write it, or name an environment variable as `${NAME}`")
    return Secret(value.rstrip("\r\n"))


def _permissions(value: object) -> int:
    digits = str(value).strip()  # config.yaml may write 660, which is a number, or 0660, which is none
    if not _PERMISSIONS.fullmatch(digits):
        raise ValueError("write permissions as three octal digits, such as `0660`")
    return int(digits, 8)


def _rule(value: object) -> Rule:
    if isinstance(value, Rule):
        return value
    if not isinstance(value, str):
        raise ValueError('write a method and a path pattern, such as "GET /collections/*"')  # noqa: TRY004  # as above
    return Rule.parse(value)


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("write a number")  # noqa: TRY004  # as above
    return value


def _from_base(value: Path, info: ValidationInfo) -> Path:
    if not value.name or "\0" in str(value):
        raise ValueError("write the path of a file")
    base = (info.context or {}).get(BASE)
    return base / value if base else value


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _one_or_many(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


_DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "examples": ["250ms", "10s", "5m"]})
_AS_DURATION = PlainSerializer(format_duration, return_type=str, when_used="json")

Duration = Annotated[Micros, PlainValidator(_between(0, 31 * DAY)), _AS_DURATION, _DURATION_SCHEMA]
"""A duration that may be zero."""

Timeout = Annotated[Micros, PlainValidator(_between(MILLISECOND, DAY)), _AS_DURATION, _DURATION_SCHEMA]
"""A timeout: 1ms to 1d."""

Window = Annotated[Micros, PlainValidator(_between(MILLISECOND, 31 * DAY)), _AS_DURATION, _DURATION_SCHEMA]
"""The window of a limit: 1ms to 31d."""

Permissions = Annotated[
    int,
    PlainValidator(_permissions),
    PlainSerializer(lambda mode: f"{mode:04o}", return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{_PERMISSIONS.pattern}$", "examples": ["0660"]}),
]
"""File permissions in the notation of `chmod`."""

SecretText = Annotated[
    Secret,
    PlainValidator(_secret),
    PlainSerializer(lambda _: MASK, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
PasswordText = Annotated[
    Secret,
    PlainValidator(_password),
    PlainSerializer(lambda _: MASK, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
"""A secret that may contain any character."""

ListenerText = Annotated[
    Listener,
    PlainValidator(parse_admin),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": LISTENER_PATTERN}),
]
_LISTENER_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": LISTENER_PATTERN},
        {
            "type": "object",
            "properties": {
                "address": {"type": "string", "pattern": LISTENER_PATTERN},
                "proxy_protocol": {
                    "type": "boolean",
                    "default": False,
                    "description": "Whether each connection begins with a header of the PROXY protocol, 1 or 2; "
                    "only `inbound.trusted_proxies` may connect then.",
                },
            },
            "required": ["address"],
            "additionalProperties": False,
        },
    ]
}
_DataListener = Annotated[
    Listener,
    PlainValidator(parse_listener),
    PlainSerializer(format_listener, when_used="json"),
]
Listeners = Annotated[
    tuple[_DataListener, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_many),
    WithJsonSchema(
        {
            "anyOf": [
                *_LISTENER_SCHEMA["anyOf"],
                {"type": "array", "items": _LISTENER_SCHEMA, "minItems": 1},
            ]
        }
    ),
]
TrustedProxy = Annotated[
    TrustedAddress,
    PlainValidator(parse_trusted),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^(unix|[0-9A-Fa-f.:]+(/[0-9]{1,3})?)$"}),
]
RuleText = Annotated[
    Rule,
    PlainValidator(_rule),
    PlainSerializer(lambda rule: rule.text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\S+\s+/\S*\s*$", "examples": ["GET /collections/*", "* /**"]}),
]
StoreUrlText = Annotated[
    StoreUrl,
    PlainValidator(parse_store_url),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^(memory|rediss?|unix|redis\+sentinel|redis\+cluster)://"}),
]
UpstreamUrl = Annotated[
    str, PlainValidator(parse_upstream_url), WithJsonSchema({"type": "string", "pattern": r"^https?://[^/@?#]+/?$"})
]
FilePath = Annotated[Path, BeforeValidator(_stripped), AfterValidator(_from_base)]
Number = BeforeValidator(_not_boolean)
"""Rejects `true` and `false` where a number is required."""

Name = Annotated[str, *_matching(_NAME, "a name has 1 to 64 of the characters A-Z, a-z, 0-9, `.`, `_` and `-`")]
HeaderName = Annotated[str, *_matching(_HEADER_NAME, "this is no name of a header: write letters, digits and `-`")]
QueryName = Annotated[str, *_matching(_QUERY_NAME, "write letters, digits, `.`, `_`, `~` or `-`")]
Sha256 = Annotated[
    str,
    *_matching(_SHA256, "write the 64 hexadecimal digits that `keyturn token` prints, in quotes"),
    AfterValidator(str.lower),
]
