"""Which text of a row is embedded: a column, or a template that joins several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core.errors import InputError, unknown_name
from vecmill.data.kinds import field_at, plain_texts


class _HasSchema(Protocol):
    @property
    def schema(self) -> pa.Schema: ...

    @property
    def string_columns(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class TextColumn:
    """The text is a column as it stands."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns the text is made of."""
        return (self.column,)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Return the columns that must hold texts: what `readers.batches` is to be told."""
        return (self.column,)

    def describe(self) -> str:
        """Return how the text is made, for plans and manifests."""
        return f"column {self.column!r}"

    def texts(self, batch: pa.RecordBatch) -> list[str | None]:
        """Return the text of every row, None where the column is null."""
        values: list[str | None] = _values(batch, self.column).cast(pa.string()).to_pylist()
        return values


@dataclass(frozen=True, slots=True)
class Template:
    """The text joins literal pieces and trimmed values, in turn.

    Attributes:
        source: The template as written.
        literals: One more than columns.
        columns: The columns named, in order, each as often as it is named.
    """

    source: str
    literals: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Return nothing: a template takes numbers too; `template_columns` names what it mentions."""
        return ()

    def describe(self) -> str:
        """Return the template as written, for plans and manifests."""
        return self.source

    def texts(self, batch: pa.RecordBatch) -> list[str | None]:
        """Return the text of every row; a null value counts as empty.

        A row of nothing but nulls is None. One of nothing but nulls and blanks has no text either, whatever
        the literal pieces say: it is "".

        Raises:
            UnknownNameError: The batch lacks a column.
        """
        columns = [plain_texts(_values(batch, name)) for name in self.columns]
        if not columns:
            return [self.literals[0]] * batch.num_rows
        texts: list[str | None] = []
        for row in zip(*columns, strict=True):
            if all(value is None for value in row):
                texts.append(None)
                continue
            values = [(value or "").strip() for value in row]
            pieces = [self.literals[0]]
            for value, literal in zip(values, self.literals[1:], strict=True):
                pieces += (value, literal)
            texts.append("".join(pieces) if any(values) else "")
        return texts


def parse_template(template: str) -> Template:
    """Parse a template such as "Title: {Summary}; Content: {Text}".

    `{column}` stands for the column's trimmed value, `{doc.text}` for a field inside an object, `{{` and `}}`
    for braces. Anything may stand between the braces that is a column name, except braces themselves.

    Raises:
        InputError: A brace without its partner, empty braces, or no column at all.
    """
    literals, columns = [""], []
    position = 0
    while position < len(template):
        char = template[position]
        if template[position : position + 2] in ("{{", "}}"):
            literals[-1] += char
            position += 2
        elif char == "{":
            end = template.find("}", position)
            name = template[position + 1 : end] if end > 0 else ""
            if not name.strip() or "{" in name:
                raise InputError(
                    f"template {template!r}: the brace at character {position + 1} does not hold a column "
                    "name; "
                    "write {column}, or {{ for a brace as such"
                )
            columns.append(name)
            literals.append("")
            position = end + 1
        elif char == "}":
            raise InputError(
                f"template {template!r}: the brace at character {position + 1} closes nothing; write "
                "}}}} for a "
                "brace as such"
            )
        else:
            literals[-1] += char
            position += 1
    if not columns:
        raise InputError(
            f"template {template!r} names no column; write a column's name in braces, as in '{{text}}'"
        )
    return Template(template, tuple(literals), tuple(columns))


def template_columns(template: str) -> tuple[str, ...]:
    """Return the columns a template mentions, each once: what `readers.scan` is to be told.

    Raises:
        InputError: As `parse_template`.
    """
    return tuple(dict.fromkeys(parse_template(template).columns))


def choose_text(scan: _HasSchema, *, text: str | None, template: str | None) -> TextColumn | Template:
    """Choose what is embedded: the named column, the template, or the only column of strings.

    Args:
        scan: What `readers.scan` found.
        text: A column, or None.
        template: A template, or None.

    Raises:
        InputError: Both are given; or neither, and there is not exactly one column of strings.
        UnknownNameError: A column does not exist; close names are listed.
    """
    if text is not None and template is not None:
        raise InputError("--text and --template are both given; use one")
    known = column_paths(scan.schema)
    if template is not None:
        parsed = parse_template(template)
        for name in parsed.columns:
            if name not in known:
                raise unknown_name("column", name, known)
        return parsed
    if text is not None:
        if text not in known:
            raise unknown_name("column", text, known)
        kind = field_at(scan.schema, text)
        if not (pa.types.is_string(kind) or pa.types.is_null(kind)):
            raise InputError(
                f"column {text!r} is {kind}, not text; columns of text: {_listed(scan.string_columns)}"
            )
        return TextColumn(text)
    if len(scan.string_columns) == 1:
        return TextColumn(scan.string_columns[0])
    if not scan.string_columns:
        raise InputError(f"no column holds text; the columns are {_listed(scan.schema.names)}")
    first, second = scan.string_columns[:2]
    raise InputError(
        f"several columns hold text: {_listed(scan.string_columns)}; choose one with --text {first}, or join "
        f"some: --template '{{{first}}} {{{second}}}'. If these are no names but a first row, add --no-header"
    )


def column_paths(schema: pa.Schema) -> list[str]:
    """Return the names of all columns and, dotted, of the fields inside structs."""

    def inside(prefix: str, kind: pa.DataType) -> list[str]:
        if not pa.types.is_struct(kind):
            return [prefix]
        return [prefix, *(path for field in kind for path in inside(f"{prefix}.{field.name}", field.type))]

    return [path for field in schema for path in inside(field.name, field.type)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "") if names else "none"


def _values(batch: pa.RecordBatch, path: str) -> pa.Array:
    if path in batch.schema.names:
        return batch.column(path)
    if field_at(batch.schema, path) is None:
        raise unknown_name("column", path, column_paths(batch.schema))
    head, *rest = path.split(".")
    column = batch.column(head)
    for name in rest:
        column = pc.struct_field(column, name)
    return column
