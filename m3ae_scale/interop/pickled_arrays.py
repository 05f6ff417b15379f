"""numpy arrays in a pickle: read from what numpy would have been called with, and written as any numpy reads them.

numpy's own reconstruction is never called on what a file says: only whole bytes of a plain number type become an array.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from m3ae_scale.interop.pickles import Made, Name

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def as_array(value: Any) -> np.ndarray | None:
    """Return the array or number that `value` stands for; None where it is something else, or does not add up."""
    if isinstance(value, bool | int | float):
        return np.asarray(value)
    if not isinstance(value, Made) or not isinstance(value.arguments, tuple):
        return None
    match value.arguments:
        case (data, dtype, shape, order) if value.called("_frombuffer"):
            return _array(data, dtype, shape, order)
        case (dtype, data) if value.called("scalar"):
            return _array(data, dtype, (), "C")
        case (Name(name="ndarray"), *_) if value.called("_reconstruct") and isinstance(value.state, tuple):
            match value.state:
                case (_, shape, dtype, fortran, data):
                    return _array(data, dtype, shape, "F" if fortran else "C")
        case (function, arguments, state, _) if value.called("_reconstruct_array"):  # of JAX: around one of numpy
            return as_array(Made(function, arguments, state))
    return None


def as_dict(value: Any) -> Mapping[Any, Any] | None:
    """Return the dict that `value` is or stands for (FrozenDict, OrderedDict), else None."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Made) or not value.called("FrozenDict", "OrderedDict", "dict"):
        return None
    if value.entries:
        return value.entries
    state = value.state.get("_dict") if isinstance(value.state, dict) else None
    for inner in (state, *(value.arguments if isinstance(value.arguments, tuple) else ())):
        if isinstance(inner, dict):
            return inner
        if isinstance(inner, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in inner):
            return {key: content for key, content in inner if isinstance(key, str)}
    return {}


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray | None:
    kind, raw = _dtype(dtype), _bytes(data)
    if isinstance(shape, list):
        shape = tuple(shape)
    if kind is None or raw is None or not isinstance(shape, tuple) or order not in ("C", "F"):
        return None
    if not all(type(length) is int and length >= 0 for length in shape) or len(shape) > 8:
        return None
    if math.prod(shape) * kind.itemsize != len(raw):
        return None
    return np.frombuffer(raw, kind).reshape(shape, order=order)


def _dtype(value: Any) -> np.dtype | None:
    if not isinstance(value, Made) or not value.called("dtype"):
        return None
    match value.arguments, value.state:
        case (str(code), *_), (_, str(order), *_) if code in _NUMBERS and order in "<>|=":
            return np.dtype(order + code)
        case (str(code), *_), None if code in _NUMBERS:
            return np.dtype(code)
    return None


def _bytes(value: Any) -> bytes | bytearray | None:
    """The bytes of an array; protocols before 3 write them as text, to be encoded."""
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, Made) and value.called("encode"):
        match value.arguments:
            case (str(text), "latin1" | "latin-1"):
                return text.encode("latin1", "replace")
    return None


def write_pickle(value: Any, file: BinaryIO) -> None:
    """Write dicts, lists, tuples, text, numbers, None, arrays and Mades as a pickle of protocol 4, piece by piece.

    Arrays name `numpy.core`, which numpy before and after 2.0 reads. Raises TypeError for anything else.
    """
    file.write(b"\x80\x04")
    for piece in _pieces(value):
        file.write(piece)
    file.write(b".")


def _pieces(value: Any) -> Iterator[bytes]:
    match value:
        case None | bool() | int() | float() | str() | bytes():
            yield _plain(value)
        case Name():
            yield f"c{value.module}\n{value.name}\n".encode()
        case Made():
            yield from _pieces(value.callee)
            yield from _pieces(value.arguments)
            yield b"\x81" if value.arguments == () else b"R"  # an empty object, else what a call gives
            if value.state is not None:
                yield from _pieces(value.state)
                yield b"b"
        case np.ndarray():
            yield from _pieces(_made(value))
        case dict():
            yield b"}("
            for pair in value.items():
                yield from (piece for part in pair for piece in _pieces(part))
            yield b"u"
        case list() | tuple():
            yield b"](" if isinstance(value, list) else b"("
            for part in value:
                yield from _pieces(part)
            yield b"e" if isinstance(value, list) else b"t"
        case _:
            raise TypeError(f"a {type(value).__name__} has no plain pickle")


def _plain(value: Any) -> bytes:
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            size = (value.bit_length() + 8) // 8
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(text)) + text
        case bytes():
            return b"\x8e" + struct.pack("<Q", len(value)) + value
        case _:
            return b"N"


def _made(array: np.ndarray) -> Made:
    code = array.dtype.str
    order = "|" if code[0] == "|" else "<"
    dtype = Made(Name("numpy", "dtype"), (code[1:], False, True), (3, order, None, None, None, -1, -1, 0))
    empty = (Name("numpy", "ndarray"), (0,), b"b")
    data = np.ascontiguousarray(array, np.dtype(order + code[1:])).tobytes()
    state = (1, tuple(array.shape), dtype, False, data)
    return Made(Name("numpy.core.multiarray", "_reconstruct"), empty, state)
