"""Addresses of endpoints, and how their passwords and keys stay out of every text."""

import base64
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

HIDDEN = "***"
_LEAST_CHARACTERS = 3
"""A shorter secret is not looked for in texts: it would be found everywhere."""
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@'\"]+@")
_IN_QUERY = re.compile(
    r"((?:[?&;\s]|^)[\w.-]*(?:key|token(?!s)|secret|password|passwd|pwd|sig|signature|auth)[\w.-]*=)[^&;\s'\"<>)]+",
    re.I,
)
_IN_HEADER = re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{6,}")
_KEY = re.compile(r"\b(?:sk|pk|gsk|hf|xai|rk)[-_][A-Za-z0-9_-]{8,}")


class Address(str):
    """The base URL of an endpoint as it may be shown: user, password and the values of its query are hidden.

    It is this text wherever it is printed, stored, copied by pickle or compared. What is hidden is kept beside it.
    """

    user: str | None = None
    password: str | None = None
    query: tuple[tuple[str, str], ...] = ()
    """Names and values, such as an api-version."""

    @classmethod
    def read(cls, text: str) -> "Address":
        """Return the address that a text gives.

        Raises:
            ValueError: It is none; the message does not repeat it.
        """
        parts = _split(text.strip())
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        host = parts.netloc.rpartition("@")[2]
        login = HIDDEN + "@" if "@" in parts.netloc else ""
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        shown = "&".join(f"{name}={HIDDEN}" for name, _ in query)
        found = cls(urlunsplit((parts.scheme, login + host, path, shown, "")))
        found.query = query
        if login:
            found.user, found.password = unquote(parts.username or ""), unquote(parts.password or "")
        return found

    @property
    def url(self) -> str:
        """Return the URL that chat completions are asked for, without login and query."""
        parts = urlsplit(self)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, f"{parts.path}/chat/completions", "", ""))

    @property
    def authorization(self) -> str | None:
        """Return the header of its user and password; None without them."""
        if self.user is None:
            return None
        login = f"{self.user}:{self.password or ''}".encode()
        return "Basic " + base64.b64encode(login).decode()

    @property
    def secrets(self) -> list[str]:
        """Return what may not be shown."""
        login = [self.password or self.user, self.authorization and self.authorization.removeprefix("Basic ")]
        return [each for each in (*login, *(value for _, value in self.query)) if each]

    @property
    def is_hidden(self) -> bool:
        """Return whether it was read back from a shown one, so that its secrets are lost."""
        return HIDDEN in self.secrets

    def __reduce__(self) -> tuple[Any, ...]:
        return (Address.read, (str(self),))

    def __copy__(self) -> "Address":
        return self

    def __deepcopy__(self, memo: object) -> "Address":
        return self


def without_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text with these secrets hidden, and with all that looks like a login, a key or a token.

    Args:
        text: Such as a server's error message.
        secrets: Known ones; each is found as it is and in quotes of a URL.
    """
    known = [each for each in secrets if len(each) >= _LEAST_CHARACTERS]
    for secret in sorted({*known, *map(_quoted, known)}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _IN_ADDRESS.sub(HIDDEN + "@", text)
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
    text = _IN_HEADER.sub(rf"\1 {HIDDEN}", text)
    return _KEY.sub(HIDDEN, text)


def _quoted(secret: str) -> str:
    return quote(secret, safe="")


def _split(text: str) -> SplitResult:
    """Return the parts of a URL, or raise ValueError without repeating it: a part of it may be a password."""
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("http", "https") or re.search(r"\s", text):
        raise ValueError("is no address such as http://127.0.0.1:8000/v1 (not shown, as it may hold a password)")
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(
            "holds an @ behind its host (not shown, as it may hold a password); write / ? # and @ of a password as "
            "%2F %3F %23 %40"
        )
    return parts
