"""Reads tables of Arrow: parquet files, and Arrow files and streams (feather, `save_to_disk` of datasets)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from kdcli.data.raw_rows import BadRows, table_rows
from kdcli.data.streams import ARROW_FILE, BOMB, BOMB_FROM, bomb
from kdcli.errors import DataError, listed
from kdcli.tasks.rows import RowSchema

BATCH = 1000
"""The number of rows of a table that are decoded at a time."""
_ERRORS = (pyarrow.ArrowException, OSError, ValueError, OverflowError, NotImplementedError, MemoryError)


class Table:
    """An open file with a table.

    Attributes:
        schema: its Arrow schema.
    """

    def __init__(self, path: Path, format_name: str, stack: contextlib.ExitStack):
        self.path = path
        self.limit = max(BOMB_FROM, BOMB * os.path.getsize(path))
        with path.open("rb") as stream:
            magic = stream.read(8)
        self.file: Any
        if format_name == "parquet":
            self.file = stack.enter_context(pyarrow.parquet.ParquetFile(path))
            self.schema = self.file.schema_arrow
        else:
            open_table = pyarrow.ipc.open_file if magic.startswith(ARROW_FILE) else pyarrow.ipc.open_stream
            self.file = stack.enter_context(open_table(stack.enter_context(pyarrow.OSFile(str(path)))))
            self.schema = self.file.schema

    def batches(self, names: list[str]) -> Iterator[Any]:
        """Record batches with these columns.

        Raises:
            DataError: the table is far larger than its file.
        """
        if isinstance(self.file, pyarrow.parquet.ParquetFile):
            _require_rows(self.file, self.path)
            yield from self.file.iter_batches(BATCH, columns=names)
            return
        reader = self.file
        batches = (
            (reader.get_batch(index) for index in range(reader.num_record_batches))
            if isinstance(reader, pyarrow.RecordBatchFileReader)
            else reader
        )
        for batch in batches:
            batch.validate(full=True)  # the offsets of a damaged file point anywhere
            chosen = batch.select(names)
            for first in range(0, len(chosen), BATCH):
                yield chosen.slice(first, BATCH)


def read(schema: RowSchema, path: Path, format_name: str, bad: BadRows) -> Iterator[tuple[Any, ...]]:
    """Yield the values of the wanted columns of each row; integers of a class label that the table declares become its name.

    Raises:
        DataError: a column is missing, or the file is damaged or a bomb.
    """
    try:
        with contextlib.ExitStack() as stack:
            source = Table(path, format_name, stack)
            paths = schema.value_paths(source.schema.names, path.name, nested=True)
            names = list({each[0]: None for each in paths})
            labels = declared_names(source.schema, paths[-1])
            size, first = 0, 1
            for batch in source.batches(names):
                columns = {name: _plain(batch.column(name)) for name in names}
                size += sum(column.nbytes for column in columns.values())
                if size > source.limit:
                    raise bomb(path)
                table = {name: column.to_pylist() for name, column in columns.items()}
                for values in table_rows(table, paths, path.name, bad, first):
                    yield (*values[:-1], class_name(values[-1], labels)) if labels else values
                first += len(batch)
    except _ERRORS as error:
        raise DataError(
            f"{path} is not a complete {format_name} file, or a column of it cannot be read ({str(error).strip()}); write it anew"
        ) from None


def declared(schema: RowSchema, path: Path, format_name: str) -> list[str] | None:
    """Return the names of the labels that a table declares. Errors are left to `read`."""
    with contextlib.suppress(*_ERRORS, DataError), contextlib.ExitStack() as stack:
        source = Table(path, format_name, stack)
        paths = schema.column_paths(source.schema.names, path.name, nested=True)
        return declared_names(source.schema, paths[-1])
    return None


def _plain(column: Any) -> Any:
    """Return a column of a table, decoded from a dictionary, which would hide its size. Bytes that are UTF-8 are text, as Hive and Impala write it."""
    column = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
    if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
        with contextlib.suppress(pyarrow.ArrowInvalid):
            return column.cast(pyarrow.large_string())
    return column


def _require_rows(file: Any, path: Path) -> None:
    """Refuse a table that is too large by what it says of itself, before anything is decoded."""
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    claimed = max(file.metadata.num_rows, sum(group.total_byte_size for group in groups))
    if claimed > max(BOMB_FROM, BOMB * os.path.getsize(path)):
        raise bomb(path)


def declared_names(schema: pyarrow.Schema, path: list[str]) -> list[str] | None:
    """Return the names of the classes that the metadata of datasets declares for a column, or for the items of its lists."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    import datasets

    try:
        feature: Any = datasets.Features.from_arrow_schema(schema)
        for key in path:
            feature = feature[key]
    except Exception:  # metadata of another version: the integers are read as they are
        return None
    return class_names(feature)


def class_names(feature: Any) -> list[str] | None:
    """Return the names of a class label of datasets, or of a list of them."""
    import datasets

    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def class_name(label: Any, names: list[str]) -> Any:
    """Return the name of a class index, or those of a list; None for a missing one (-1).

    Raises:
        DataError: there is no such class.
    """
    if isinstance(label, list):
        return [class_name(each, names) for each in label]
    if not isinstance(label, int):
        return label
    if label >= len(names):
        raise DataError(
            f"the label {label} is not among the {len(names)} names that the data set declares: {listed(names)}; correct it there"
        )
    return names[label] if label >= 0 else None
