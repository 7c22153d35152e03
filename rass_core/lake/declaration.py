"""How a table is declared: a TypedDict whose keys are the columns, with type, unit and meaning.

    class Margins(TypedDict, total=False):
        prompt_id: Required[Annotated[str, Column("Prompt, an id of `prompts`.")]]
        margin: Annotated[float | None, Column("Place along the direction.", "margin")]

The first line of the docstring says what one row is; paragraphs with more may follow, and a query under "Example:".
The table is called as the class in lower case. A column that is `Required` is never null; any other may be left out of
a row and is null then. Types are Python's, `Int32` or `Vector`. Everything else follows from the class: the Arrow
schema, what mypy checks on rows built by keyword, the comments in DuckDB, `rass tables` and docs/tables.md.
"""

import inspect
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any

import pyarrow as pa

STRINGS = pa.list_(pa.string())
VECTOR = pa.list_(pa.field("item", pa.float32(), nullable=False))

Int32 = Annotated[int, pa.int32()]
Vector = Annotated[Sequence[float], VECTOR]

_ARROW = {
    str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), datetime: pa.timestamp("us", tz="UTC"),
}  # fmt: skip
_SQL = {
    pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.int32(): "INTEGER", pa.float64(): "DOUBLE",
    pa.float32(): "FLOAT", pa.bool_(): "BOOLEAN", pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """The meaning and unit of a column, as declared."""

    meaning: str
    """One or two sentences. Names of tables and columns are in backticks."""
    unit: str = ""
    """Unit of a number: tokens, nats, margin; empty if it has none."""


@dataclass(frozen=True)
class DeclaredColumn:
    """A column as it was declared."""

    name: str
    """A field within a list of records is written `needs[].metric`."""
    type: pa.DataType
    column: Column
    can_be_null: bool
    fields: tuple["DeclaredColumn", ...] = ()
    """Fields of each record, if it is a list of records."""

    @property
    def sql_type(self) -> str:
        """Return the type as DuckDB calls it; the fields of records have lines of their own."""
        if self.fields:
            return "STRUCT[]"
        if pa.types.is_list(self.type):
            return f"{_SQL[self.type.value_type]}[]"
        return _SQL[self.type]

    @property
    def comment(self) -> str:
        """Return meaning and unit, in one line."""
        return f"{self.column.meaning} Unit: {self.column.unit}." if self.column.unit else self.column.meaning

    def flat(self) -> list["DeclaredColumn"]:
        """Return the column, and after it the fields of its records."""
        return [self, *self.fields]


@dataclass(frozen=True)
class DeclaredTable:
    """A table as it was declared."""

    row: type
    """The TypedDict of its rows."""

    @property
    def name(self) -> str:
        """Return the name: that of the class in lower case, words parted by `_`."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.row.__name__).lower()

    @cached_property
    def columns(self) -> tuple[DeclaredColumn, ...]:
        """Return the columns in their order."""
        return columns_of(self.row)

    @property
    def schema(self) -> pa.Schema:
        """Return the Arrow schema."""
        return pa.schema([(column.name, column.type) for column in self.columns])

    @property
    def sentence(self) -> str:
        """Return what a row is, in one sentence."""
        return self._parts()[0]

    @property
    def notes(self) -> list[str]:
        """Return the paragraphs that say more."""
        return self._parts()[1]

    @property
    def example(self) -> str:
        """Return a query that is typical of the table."""
        return self._parts()[2]

    def _parts(self) -> tuple[str, list[str], str]:
        text, _, example = (inspect.getdoc(self.row) or "").partition("\nExample:\n")
        sentence, *notes = [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]
        return sentence, notes, inspect.cleandoc(example)


def columns_of(row: type, within: str = "") -> tuple[DeclaredColumn, ...]:
    """Return the columns of a TypedDict.

    Args:
        row: The class.
        within: Written before each name.
    """
    hints = typing.get_type_hints(row, include_extras=True)
    return tuple(_column(f"{within}{name}", hint) for name, hint in hints.items())


def _column(name: str, hint: Any) -> DeclaredColumn:
    if typing.get_origin(hint) is typing.Required:
        (hint,) = typing.get_args(hint)
    of, *known, column = typing.get_args(hint)
    kind, can_be_null = _without_none(of)
    fields: tuple[DeclaredColumn, ...] = ()
    if typing.get_origin(kind) is list and typing.is_typeddict(typing.get_args(kind)[0]):
        fields = columns_of(typing.get_args(kind)[0], f"{name}[].")
    return DeclaredColumn(name, known[0] if known else _arrow(kind), column, can_be_null, fields)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Return the type without None, and whether None was in it."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    (kind,) = [each for each in typing.get_args(hint) if each is not type(None)]
    return kind, True


def _arrow(kind: Any) -> pa.DataType:
    """Return the Arrow type of a declared type."""
    if typing.get_origin(kind) is Annotated:
        return typing.get_args(kind)[1]
    if typing.get_origin(kind) is list:
        (of,) = typing.get_args(kind)
        return pa.list_(_record(of) if typing.is_typeddict(of) else _arrow(of))
    return _ARROW[kind]


def _record(row: type) -> pa.DataType:
    return pa.struct([(column.name, column.type) for column in columns_of(row)])
