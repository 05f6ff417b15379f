"""Tells by looking at it what format a source has, and opens its rows."""

from collections.abc import Mapping
from pathlib import Path

from m3ae_scale.data.convert.hdf5 import Hdf5Rows
from m3ae_scale.data.convert.image_folder import ImageFolderRows
from m3ae_scale.data.convert.rows import Rows
from m3ae_scale.data.convert.table import TableRows
from m3ae_scale.data.sample import Kind
from m3ae_scale.errors import InputError

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")


def open_rows(
    source: str | Path,
    *,
    kind: Kind | None = None,
    images: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
) -> Rows:
    """Open a table of image files and captions, an HDF5 file of m3ae_public, or a folder.

    A folder is read by the tables at its top (several of one format: one after the other), or else as one folder a
    class. kind: None: pairs from a table, what the datasets say from HDF5; a folder of classes is always "image".
    images, image_column, caption_column: of tables only. split: of HDF5 only.
    Raises InputError for what is none of these, and for an option that another format has.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise InputError(f"{source}: found no such file or folder; give a table, an HDF5 file or a folder of images")
    tables = _tables_in(source) if source.is_dir() else [source] * (source.suffix.lower() in TABLE_ENDINGS)
    of_tables = {"--images": images, "--image-column": image_column, "--caption-column": caption_column}
    if tables:
        _refuse(source, "a table", {"--split": split})
        folder = None if images is None else Path(images).expanduser()
        if folder is not None and not folder.is_dir():
            raise InputError(f"--images: found no folder {folder}, expected the one that image paths begin at")
        return TableRows(tables, kind or "paired", folder, image_column, caption_column)
    if source.is_dir():
        _refuse(
            source, "a folder of images", {**of_tables, "--split": split, "--kind": None if kind == "image" else kind}
        )
        return ImageFolderRows(source)
    if source.suffix.lower() in HDF5_ENDINGS:
        _refuse(source, "HDF5", of_tables)
        return Hdf5Rows(source, kind, split)
    raise InputError(
        f"{source}: found a file ending in {source.suffix or 'nothing'}, expected a table "
        f"({', '.join(TABLE_ENDINGS)}), HDF5 ({', '.join(HDF5_ENDINGS)}) or a folder"
    )


def _tables_in(folder: Path) -> list[Path]:
    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLE_ENDINGS and p.is_file())
    if len({table.suffix.lower() for table in tables}) > 1:
        names = ", ".join(table.name for table in tables)
        raise InputError(f"{folder}: found the tables {names}; give the one to convert, and --images {folder}")
    return tables


def _refuse(source: Path, what: str, options: Mapping[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise InputError(f"{option}: found {value}, but {source} is {what}, which has no such choice; leave it out")
