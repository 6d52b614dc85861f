"""Why somebody is not let in: the cause (`__cause__`) of an `Unauthenticated`, for whoever takes note of it."""

from typing import Literal, Protocol

Why = Literal["missing", "token", "jwt", "certificate"]

_DETAILS: dict[Why, str] = {
    "missing": "nobody: there is no credential",
    "token": "a token that is not known",
    "jwt": "a JSON Web Token that is not accepted",
    "certificate": "a certificate in which no name is known",
}


class Teacher(Protocol):
    """Who can find out more about a credential."""

    async def learn(self) -> None:
        """Ask once more; returns when there is an answer, or none will come."""


class NotKnown(Exception):
    """No credential, or one that is nobody's; it shows no value.

    `detail` is for the log, and goes on from "no entry for".
    """

    def __init__(self, why: Why, detail: str = "") -> None:
        self.why = why
        self.detail = detail or _DETAILS[why]
        super().__init__(self.detail)


class NotYetKnown(NotKnown):
    """A token is signed with a key that its issuer may have begun to use since it was asked last."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__("jwt", "a JSON Web Token that is signed with a key that its issuer does not publish")
        self.teacher = teacher
