"""What the settings of all parts share."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 1_000_000
"""Of prompts or candidates: a run with more never ends."""
MAX_TOKENS = 16_777_216
"""Of a context or batch: no model has more."""
STRICT = ConfigDict(
    frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), hide_input_in_errors=True
)
FailedShare = Annotated[float, Field(ge=0, le=1)]


def check_kind(member: Any, own: Mapping[str, set[str]]) -> None:
    """Refuse settings of another kind: silently left out, they would judge by somebody else."""
    foreign = member.model_fields_set - own.get(member.kind, set()) - {"kind", "weight"}
    # A run's stored configuration names every setting; what stands at its default says nothing.
    fields = type(member).model_fields
    defaults = {name: fields[name].get_default(call_default_factory=True) for name in foreign}
    for name in sorted(each for each in foreign if getattr(member, each) != defaults[each]):
        kinds = " or ".join(kind for kind, names in own.items() if name in names)
        raise ValueError(f"{name}: belongs to a member of kind {kinds}, this member is {member.kind}; leave it out")


def check_patterns(member: BaseModel, names: Iterable[str]) -> None:
    """Refuse what is not a regular expression."""
    for name in names:
        try:
            re.compile(getattr(member, name) or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{name}: not a regular expression ({error}); put \\ before a literal bracket") from error
