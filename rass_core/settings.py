"""What the settings of all parts share."""

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 1_000_000
"""Most prompts or candidates: a run with more never ends."""
MAX_TOKENS = 16_777_216
"""Most tokens of a context or batch: no model has more."""
STRICT = ConfigDict(
    frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), hide_input_in_errors=True
)
FailedShare = Annotated[float, Field(ge=0, le=1)]


def check_patterns(member: BaseModel, names: Iterable[str]) -> None:
    """Refuse what is not a regular expression."""
    for name in names:
        try:
            re.compile(getattr(member, name) or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{name}: not a regular expression ({error}); put \\ before a literal bracket") from error
