"""Pickles are read as data: what honest writers write comes back, and a hostile one is refused and runs nothing."""

import collections
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.errors import InputError
from m3ae_scale.interop.pickled_arrays import as_array, as_dict, write_pickle
from m3ae_scale.interop.pickles import Made, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
DTYPES = ("float32", "float64", "float16", "int64", "uint8", "bool", ">f4")


def read(data: bytes, tmp_path: Path) -> Any:
    path = tmp_path / "model.pkl"
    path.write_bytes(data)
    return read_pickle(path)


def plain(value: Any) -> Any:
    """What a value stands for, arrays and dicts included."""
    if (array := as_array(value)) is not None and isinstance(value, Made):
        return array
    if (inner := as_dict(value)) is not None:
        return {key: plain(content) for key, content in inner.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


@given(tree=TREES, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_come_back(tmp_path_factory: pytest.TempPathFactory, tree: Any, protocol: int) -> None:
    # Protocols before 3 have no bytes: they write what makes them, which only arrays need to be read from.
    data = pickle.dumps(tree, 5 if b"_codecs" in pickle.dumps(tree, protocol) else protocol)
    if b"bytes" not in data:
        assert plain(read(data, tmp_path_factory.getbasetemp())) == tree


@given(tree=TREES)
def test_what_is_written_is_what_pickle_reads(tree: Any) -> None:
    file = io.BytesIO()
    write_pickle(tree, file)
    assert pickle.loads(file.getvalue()) == tree


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back(dtype: str, protocol: int, tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = {
        "a": array,
        "f": np.asfortranarray(array),
        "n": array[1, 2],
        "e": np.empty((0, 4), dtype),
        "s": array[:, ::2],
    }
    if dtype == ">f4":  # a scalar of numpy has its own byte order
        del value["n"]
    for found, expected in zip(
        plain(read(pickle.dumps(value, protocol), tmp_path)).values(), value.values(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_written_arrays_are_what_numpy_reads(dtype: str) -> None:
    file = io.BytesIO()
    array = np.arange(12).reshape(3, 4).astype(dtype).T
    write_pickle({"a": array}, file)
    found = pickle.loads(file.getvalue())["a"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


def test_closures_of_cloudpickle_are_passed_over(tmp_path: Path) -> None:
    rate = 0.1

    class Schedule(collections.namedtuple("Schedule", "peak")):
        def __call__(self, step: int) -> float:
            return rate * self.peak * step

    value = {"tx": (Schedule(2.0), lambda step: Schedule(1.0)(step)), "params": collections.OrderedDict(w=np.ones(3))}
    found = read(cloudpickle.dumps(value), tmp_path)
    np.testing.assert_array_equal(plain(found["params"])["w"], np.ones(3))


class Evil:
    """Unpickles into a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def assemble(*pieces: bytes) -> bytes:
    return b"\x80\x04" + b"".join(pieces) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


TOUCH = "import pathlib; pathlib.Path('touched').touch()"
HOSTILE = {
    "os.system": pickle.dumps(Evil(os.system, "touch touched")),
    "os.system, protocol 0": pickle.dumps(Evil(os.system, "touch touched"), 0),
    "eval": pickle.dumps(Evil(eval, "__import__('os').system('touch touched')")),
    "exec": pickle.dumps(Evil(exec, TOUCH)),
    "a chain of calls": pickle.dumps({"state": Evil(getattr, Evil(__import__, "os"), "system")}),
    "inside an array": pickle.dumps({"params": [np.ones(2), Evil(os.popen, "touch touched")]}),
    "as a state": pickle.dumps({"x": Evil(collections.OrderedDict, state=Evil(os.system, "touch touched"))}),
    "an instance by INST": b"(S'touch touched'\nios\nsystem\n.",
    "a call by OBJ": b"(cos\nsystem\nS'touch touched'\no.",
    "a name put together on the stack": assemble(text("os"), text("system"), b"\x93", text("touch touched"), b"\x85R"),
    "a way through an allowed module": assemble(text("typing"), text("sys.modules"), b"\x93"),
    "a way through globals": assemble(text("functools"), text("partial.__globals__"), b"\x93"),
    "a name that is a number": assemble(b"K\x01K\x02\x93"),
    "a name from the memo": assemble(text("os"), b"\x94", text("system"), b"\x940h\x00h\x01\x93"),
    "an extension code": assemble(b"\x82\x01"),
    "a persistent id": assemble(text("x"), b"Q"),
    "an out-of-band buffer": b"\x80\x05\x97.",
    "state for a list": assemble(b"]}b"),
    "a call of text": assemble(text("os"), b")R"),
    "webbrowser": assemble(b"cwebbrowser\nopen\n"),
    "a module of numpy's that runs things": assemble(b"cnumpy.f2py.os\nsystem\n"),
    "bytes that are not there": assemble(b"\x8e" + struct.pack("<Q", 1 << 60)),
    "text that is not there": assemble(b"\x8d" + struct.pack("<Q", 1 << 62)),
    "a byte array that is not there": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "a number that is not there": assemble(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "a number of negative length": assemble(b"\x8b" + struct.pack("<i", -5)),
    "a frame that is not there, then nothing": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62),
    "a memo entry that is not there": assemble(b"j\xff\xff\xff\x7f"),
    "digits without end": b"I" + b"9" * 200_000 + b"\n.",
    "no mark": assemble(b"u"),
    "an empty stack": b".",
    "nothing": b"",
    "half a pickle": pickle.dumps({"params": np.ones(100)})[:-40],
    "a key that is a list": assemble(b"}]K\x01s") + b"x",
    "unknown instructions": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_in_one_line_and_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "a key that is a list":
        assert read(HOSTILE[name], tmp_path)  # harmless: the key is kept as a thing of its own
        return
    with pytest.raises(InputError) as refusal:
        read(HOSTILE[name], tmp_path)
    assert "\n" not in str(refusal.value) and "model.pkl" in str(refusal.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pkl"]


def test_a_far_memo_entry_costs_no_memory(tmp_path: Path) -> None:
    assert read(assemble(b"Nr\xff\xff\xff\x7f"), tmp_path) is None  # the C unpickler would fill gigabytes with zeros


def test_nested_tuples_as_a_key_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    nested = b")" + b"\x85" * 100_000
    assert read(assemble(b"}" + nested + b"Ns"), tmp_path)


@given(data=st.binary(max_size=200), start=st.sampled_from([b"", b"\x80\x04", b"\x80\x04}(", b"c"]))
def test_noise_gives_a_value_or_one_line(tmp_path_factory: pytest.TempPathFactory, start: bytes, data: bytes) -> None:
    try:
        read(start + data, tmp_path_factory.getbasetemp())
    except InputError as refusal:
        assert "\n" not in str(refusal)


FORGED = {
    "more elements than bytes": lambda s: (*s[:1], (1 << 40,), *s[2:]),
    "a negative length": lambda s: (*s[:1], (-1,), *s[2:]),
    "objects": lambda s: (*s[:2], np.dtype("O"), *s[3:]),
    "no bytes": lambda s: (*s[:4], [1, 2]),
    "a record": lambda s: (*s[:2], np.dtype([("a", "f4")]), *s[3:]),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_array_is_no_array(name: str, tmp_path: Path) -> None:
    function, arguments, state = np.ones(4, np.float32).__reduce__()
    forged = Evil(function, *arguments, state=FORGED[name](state))
    assert as_array(read(pickle.dumps(forged, 3), tmp_path)) is None
