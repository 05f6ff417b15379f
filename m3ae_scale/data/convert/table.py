"""Rows of a csv, tsv, jsonl or parquet table whose columns name image files, or hold them, and captions."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from m3ae_scale.data.convert.rows import Row
from m3ae_scale.data.sample import Kind
from m3ae_scale.errors import InputError

Record = dict[str, Any]

IMAGE_COLUMNS = (
    "image", "image_path", "file_name", "filename", "file", "file_path", "filepath", "path", "image_file",
    "image_name", "img", "img_path", "jpg",
)  # fmt: skip
CAPTION_COLUMNS = (
    "caption", "captions", "text", "txt", "sentence", "sentences", "description", "alt_text", "alt", "title", "comment",
)  # fmt: skip
_SEPARATORS = ",\t;|"


class TableRows:
    """The rows of some tables with the same columns, one after the other.

    A caption that is a list makes a sample of each of its texts. Columns that are neither image nor caption go into
    the json of the sample.
    """

    def __init__(
        self,
        tables: Sequence[Path],
        kind: Kind,
        images: Path | None,
        image_column: str | None,
        caption_column: str | None,
    ):
        """Read the tables once: a mistake in them shows before a shard is written.

        images: the folder that image paths begin at; None: that of the table.
        image_column, caption_column: None: the first that has a usual name.
        Raises InputError for a column that is not there, or a table that cannot be read.
        """
        self.kind: Kind = kind
        self.tables, self.images = list(tables), images
        columns = _columns(self.tables[0])
        where = self.tables[0]
        self.image_column = (
            None if kind == "text" else _pick(image_column, IMAGE_COLUMNS, columns, where, "--image-column")
        )
        self.caption_column = (
            None if kind == "image" else _pick(caption_column, CAPTION_COLUMNS, columns, where, "--caption-column")
        )
        self._length = sum(_count(table) for table in self.tables)
        if not self._length:
            raise InputError(f"{where}: found no row below the names of the columns")
        self.identity = {
            "tables": [[table.name, table.stat().st_size] for table in self.tables],
            "image_column": self.image_column,
            "caption_column": self.caption_column,
        }

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Row]:
        number = 0
        for table in self.tables:
            images = table.parent if self.images is None else self.images
            for record in _records(table):
                yield from self._rows(number, record, images)
                number += 1

    def _rows(self, number: int, record: Record, images: Path) -> Iterator[Row]:
        image, name = _image(record.get(self.image_column), images) if self.image_column else (None, "")
        used = (self.image_column, self.caption_column)
        meta = {key: _plain(value) for key, value in record.items() if key not in used and not isinstance(value, bytes)}
        if self.caption_column is None:
            yield Row(number, image, name, meta=meta)
            return
        captions = record.get(self.caption_column)
        for caption in captions if isinstance(captions, list) else [captions]:
            text = b"" if caption is None else str(caption).encode("utf-8", "surrogateescape")
            yield Row(number, image, name, text, meta=meta)


def _pick(given: str | None, usual: Sequence[str], columns: list[str], where: Path, option: str) -> str:
    if given is not None:
        if given not in columns:
            raise InputError(f"{where}: found no column {given!r}, expected one of {', '.join(columns)}: see {option}")
        return given
    named = {column.strip().lower(): column for column in reversed(columns)}
    found = next((named[name] for name in usual if name in named), None)
    if found is None:
        what = "images" if usual is IMAGE_COLUMNS else "captions"
        shown = ", ".join(column if len(column) <= 40 else column[:37] + "..." for column in columns)
        raise InputError(
            f"{where}: found the columns {shown}; none has a usual name for {what} ({', '.join(usual[:4])}, ...): "
            f"name it with {option}"
        )
    return found


def _image(value: Any, images: Path) -> tuple[Callable[[], bytes] | None, str]:
    """How to read the image of a cell: a path, the bytes themselves, or both as Hugging Face's datasets hold it."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return partial(bytes, value), "image in the table"
    if value is None or not str(value).strip():
        return None, ""
    path = images / str(value)
    return path.read_bytes, str(path)


def _plain(value: Any) -> Any:
    """`value` as something that JSON can say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value if value is None or isinstance(value, str | int) else str(value)


def _columns(table: Path) -> list[str]:
    if _is_parquet(table):
        return list(_open_parquet(table).schema_arrow.names)
    first = next(_records(table), None)
    if first is None:
        raise InputError(f"{table}: found no row in the table")
    return list(first)


def _count(table: Path) -> int:
    if _is_parquet(table):
        return int(_open_parquet(table).metadata.num_rows)
    return sum(1 for _ in _records(table))


def _records(table: Path) -> Iterator[Record]:
    if _is_parquet(table):
        return _parquet_records(table)
    return _text_records(table, _json_records if table.suffix.lower() in (".jsonl", ".ndjson") else _csv_records)


def _text_records(table: Path, parse: Callable[[Path, Any], Iterator[Record]]) -> Iterator[Record]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            yield from parse(table, file)
    except OSError as error:
        raise InputError(f"{table}: cannot read the table ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{table}: found bytes that are not UTF-8 ({error.reason}); save the table as UTF-8") from None


def _csv_records(table: Path, file: Any) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)
    head = file.readline()
    separator = max(_SEPARATORS, key=head.count)
    file.seek(0)
    rows = csv.reader(file, delimiter=separator, skipinitialspace=separator != "\t")
    try:
        columns = [name.strip() for name in next(rows, [])]
        for row in rows:
            if not row:
                continue
            if len(row) != len(columns):
                raise InputError(
                    f"{table}:{rows.line_num}: found {len(row)} fields, expected {len(columns)} "
                    f"({', '.join(columns)}); put quotes around a caption that holds {separator!r}"
                )
            yield dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{table}:{rows.line_num}: {error}; expected a table with one header line") from None


def _json_records(table: Path, file: Any) -> Iterator[Record]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{table}:{number}: found no JSON ({error}); expected one object a line") from None
        if not isinstance(record, dict):
            raise InputError(f"{table}:{number}: found a {type(record).__name__}, expected one JSON object a line")
        yield record


def _is_parquet(table: Path) -> bool:
    return table.suffix.lower() in (".parquet", ".pq")


def _open_parquet(table: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(f"{table}: parquet needs another package: pip install 'm3ae_scale[convert]'") from None
    try:
        return ParquetFile(table)
    except (OSError, ArrowInvalid) as error:
        raise InputError(f"{table}: cannot read the table ({error})") from None


def _parquet_records(table: Path) -> Iterator[Record]:
    for batch in _open_parquet(table).iter_batches(batch_size=256):
        yield from batch.to_pylist()
