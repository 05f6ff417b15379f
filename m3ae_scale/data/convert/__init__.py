"""Tar shards in img2dataset's layout from what people have: tables with image files, HDF5, folders of classes."""

from m3ae_scale.data.convert.detect import open_rows
from m3ae_scale.data.convert.rows import Row, Rows
from m3ae_scale.data.convert.write import Converted, convert

__all__ = ["Converted", "Row", "Rows", "convert", "open_rows"]
