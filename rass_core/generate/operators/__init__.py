"""Operators: ways to make a new prompt from others, one per file beside this one."""

from rass_core.generate.operators.base import (
    OPERATORS,
    ROLES,
    STEERINGS,
    Operator,
    Role,
    Steered,
    instruction,
    operator_of,
)

__all__ = ["OPERATORS", "ROLES", "STEERINGS", "Operator", "Role", "Steered", "instruction", "operator_of"]
