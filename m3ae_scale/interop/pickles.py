"""Reads a pickle as data: what it would call is written down, never called; a name that no checkpoint needs ends it.

A pickle is a program for a small stack machine. `pickletools.genops` parses its instructions; here they are carried out
on plain values and records: a function or class is a Name, what calling it would give is a Made. Nothing is imported,
called, or given state, so a hostile file has no code to run and no bytes of numpy's to spoil.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from m3ae_scale.errors import InputError

# Whose names an M3AE checkpoint may hold: it drags the closures of its optimizer along, and those a part of JAX.
_MODULES = """
numpy jax jaxlib flax optax chex ml_dtypes ml_collections m3ae cloudpickle builtins __builtin__ __main__ _codecs
_collections _operator abc collections contextlib copyreg copy_reg dataclasses enum functools inspect itertools math
numbers operator re types typing typing_extensions warnings weakref
"""
_BUILTINS = """
object type int float complex bool str bytes bytearray dict list tuple set frozenset slice range property super
staticmethod classmethod getattr hasattr isinstance issubclass callable len min max sum abs any all zip map filter
enumerate reversed sorted repr hash id iter next round pow divmod ord chr format Ellipsis NotImplemented
"""
# Ways from an allowed module to everything else, as in typing's `sys.modules`.
_NEVER = """
os posix nt sys subprocess importlib builtins ctypes socket shutil runpy code pickle eval exec compile open system
popen __import__ __builtins__ __globals__ __subclasses__ __loader__ __reduce__ __reduce_ex__ __code__
"""
# Instructions that push what stands in the stream.
_PUSHED = """
INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 FLOAT BINFLOAT
"""
_ALLOWED_MODULES, _ALLOWED_BUILTINS = frozenset(_MODULES.split()), frozenset(_BUILTINS.split())
_FORBIDDEN, _PUSHING = frozenset(_NEVER.split()), frozenset(_PUSHED.split())
_MOST_INSTRUCTIONS = 5_000_000  # a checkpoint has some ten thousand; each may cost 100 bytes of memory
_LONGEST_LINE = 100_000  # characters of an instruction that ends with its line


@dataclass(frozen=True, eq=False)
class Name:
    """A function or class that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Made:
    """What a call would have given: the callee (a Name or another Made), its arguments, and what was added later."""

    callee: Any
    arguments: Any
    state: Any = None
    items: list[Any] = field(default_factory=list)  # appended
    entries: dict[Any, Any] = field(default_factory=dict)  # set by key

    def called(self, *names: str) -> bool:
        """Tell whether the callee has one of these names, its module left out."""
        return isinstance(self.callee, Name) and self.callee.name in names


class _Refused(Exception):
    """Why the pickle is not read on."""


_MARK = object()


def read_pickle(path: Path) -> Any:
    """Read the pickle at `path` into plain values, Names and Mades; calls and imports nothing.

    Raises InputError for a file that is no whole pickle, or that names what no checkpoint needs.
    """
    try:
        with open(path, "rb") as file:
            return _run(_Bounded(file, path.stat().st_size))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a checkpoint") from None
    except _Refused as reason:
        raise InputError(f"{path}: refused: {reason}; nothing of it was run") from None
    # What a torn or forged stream does to the stack machine; MemoryError: text or numbers of absurd length.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: is no whole pickle ({what}); fetch the file again") from None


class _Bounded:
    """A file that refuses to read past its end, so that a forged length allocates nothing."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size, self._at = file, size, 0

    def read(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise _Refused(f"at byte {self._at} it asks for {count} bytes, {self._size - self._at} are left")
        data = self._file.read(count)
        self._at += len(data)
        return data

    def readline(self) -> bytes:
        line = self._file.readline(_LONGEST_LINE)
        if len(line) == _LONGEST_LINE:
            raise _Refused(f"at byte {self._at} stands a line of more than {_LONGEST_LINE} characters")
        self._at += len(line)
        return line

    def tell(self) -> int:
        return self._at


def _run(file: _Bounded) -> Any:
    machine = _Machine()
    for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        if count > _MOST_INSTRUCTIONS:
            raise _Refused(f"it has more than {_MOST_INSTRUCTIONS} instructions")
        if opcode.name == "STOP":
            return machine.stack.pop()
        if opcode.name in _PUSHING:
            machine.stack.append(argument)
        elif opcode.name in _STEPS:
            _STEPS[opcode.name](machine, argument)
        else:
            raise _Refused(f"at byte {position} stands {opcode.name}, which no checkpoint needs")
    raise _Refused("it has no end")


class _Machine:
    """The stack and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def to_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack, and the mark."""
        taken = []
        while (top := self.stack.pop()) is not _MARK:
            taken.append(top)
        return taken[::-1]

    def name(self, module: Any, name: Any) -> None:
        self.stack.append(_allowed(module, name))

    def make(self, callee: Any, arguments: Any) -> None:
        if not isinstance(callee, Name | Made):
            raise _Refused(f"it calls a {type(callee).__name__}")
        self.stack.append(Made(callee, arguments))

    def add(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | Made):
            raise _Refused(f"it appends to a {type(target).__name__}")
        (target.items if isinstance(target, Made) else target).extend(values)

    def set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | Made):
            raise _Refused(f"it sets keys of a {type(target).__name__}")
        entries = target.entries if isinstance(target, Made) else target
        entries.update((_key(key), value) for key, value in zip(pairs[::2], pairs[1::2], strict=True))

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Made):
            target.state = state
        elif not isinstance(target, Name):  # the state of a class that cloudpickle rebuilds: left out
            raise _Refused(f"it gives state to a {type(target).__name__}")


def _allowed(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Refused("it names a function by something that is no text")
    top, parts = module.partition(".")[0], {*module.split(".")[1:], *name.split(".")}
    builtin = top in ("builtins", "__builtin__")
    if (
        top not in _ALLOWED_MODULES
        or parts & _FORBIDDEN
        or (builtin and name not in _ALLOWED_BUILTINS and not name.endswith(("Error", "Exception", "Warning")))
    ):
        raise _Refused(f"it names {module[:60]}.{name[:60]}, which no M3AE checkpoint needs")
    return Name(module, name)


def _key(key: Any) -> Any:
    """Return what stands for `key` in a dict; hashing a deeply nested tuple would exhaust the C stack."""
    plain = (str, int, float, bool, bytes, type(None), Name)
    if isinstance(key, plain) or (isinstance(key, tuple) and all(isinstance(part, plain) for part in key)):
        return key
    return Made(None, key)


def _pop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.to_mark()


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[index] = machine.stack[-1]


def _last(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        values = tuple(machine.stack.pop() for _ in range(count))[::-1]
        machine.stack.append(values)

    return step


def _call(machine: _Machine, _: Any) -> None:
    arguments, callee = machine.stack.pop(), machine.stack.pop()
    machine.make(callee, arguments)


def _call_with_keywords(machine: _Machine, _: Any) -> None:
    keywords, arguments, callee = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.make(callee, (arguments, keywords))


def _call_to_mark(machine: _Machine, _: Any) -> None:
    callee, *arguments = machine.to_mark()
    machine.make(callee, tuple(arguments))


def _named_instance(machine: _Machine, argument: Any) -> None:
    machine.make(_allowed(*argument.split(" ", 1)), tuple(machine.to_mark()))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


def _set_one(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set([key, value])


def _dict_to_mark(machine: _Machine, _: Any) -> None:
    pairs = machine.to_mark()
    machine.stack.append({})
    machine.set(pairs)


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,  # how much to read ahead
    "READONLY_BUFFER": lambda m, a: None,
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "MARK": lambda m, a: m.stack.append(_MARK),
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_SET": lambda m, a: m.stack.append(Made(Name("builtins", "set"), ())),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "TUPLE1": _last(1),
    "TUPLE2": _last(2),
    "TUPLE3": _last(3),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.to_mark())),
    "LIST": lambda m, a: m.stack.append(m.to_mark()),
    "FROZENSET": lambda m, a: m.stack.append(Made(Name("builtins", "frozenset"), tuple(m.to_mark()))),
    "DICT": _dict_to_mark,
    "APPEND": lambda m, a: m.add([m.stack.pop()]),
    "APPENDS": lambda m, a: m.add(m.to_mark()),
    "ADDITEMS": lambda m, a: m.add(m.to_mark()),
    "SETITEM": _set_one,
    "SETITEMS": lambda m, a: m.set(m.to_mark()),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda m, a: _put(m, len(m.memo)),
    "GET": lambda m, a: m.stack.append(m.memo[a]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "GLOBAL": lambda m, a: m.name(*a.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "NEWOBJ_EX": _call_with_keywords,
    "OBJ": _call_to_mark,
    "INST": _named_instance,
    "BUILD": lambda m, a: m.build(m.stack.pop()),
}
