"""Options that earlier versions named otherwise: commands still take the old names, their help does not show them."""

from typing import Any

_RENAMED = {"n": "limit", "head": "max-chars"}
"""Old name → new name, without dashes."""


def _current_name(name: str) -> str:
    return _RENAMED.get(name, name)


TAKES_OLD_NAMES: dict[str, Any] = {"token_normalize_func": _current_name}
"""Context settings of a command that has one of these options."""
