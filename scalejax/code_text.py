"""Python code in words: its instructions, and what these read from outside, so that an id can hash it.

Of a library the name stands for its code. What a function imports when it is called is not followed.
"""

import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

LIBRARIES = frozenset({"jax", "jaxlib", "flax", "optax", "numpy"})  # whose functions are what their names say
# So are those of these, and their modules and classes. The text of code that a program calls on the host spells their
# functions out: ids hash it.
INSTALLED = LIBRARIES | sys.stdlib_module_names | {"scalejax", "scipy", "sklearn", "pandas"}
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def digest(*texts: str) -> str:
    """Return sixteen hexadecimal digits of a hash of some texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def code_digest(value: Any, *, libraries: frozenset[str] = INSTALLED) -> str:
    """Return a digest of a function, class or object: its code, what that reads, and so on.

    Args:
        value: as described.
        libraries: packages whose functions are told by their names.
    """
    return digest(*_words_of(value, {}, libraries))


def constant(value: Any) -> np.ndarray:
    """Return an array of NumPy or JAX as one of NumPy; random keys as their bits."""
    if (jax := _jax_of(value)) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def array_text(value: Any) -> str:
    """Return an array in words: a number in full, others by their hash."""
    array = constant(value)
    if array.ndim == 0:
        return f"{array.dtype}:{array.item()!r}"
    return f"{array.dtype}{list(array.shape)}:{hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def _jax_of(value: Any) -> Any:
    """Return JAX if a value is an array of it; who has not imported it has none."""
    jax = sys.modules.get("jax")
    return jax if jax is not None and isinstance(value, jax.Array) else None


def _package(value: Any) -> str:
    """Return the package of a function, a class or a module."""
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return str(name or "").split(".")[0]


def _words_of(value: Any, seen: dict[int, Any], libraries: frozenset[str]) -> Iterator[str]:
    """Yield what tells a value that code reads from another one; of what has been seen nothing more.

    What has been seen is held: a list that is gone could give its address to another one.
    """
    if isinstance(value, np.ndarray | np.generic) or _jax_of(value):
        yield array_text(value)
        return
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | types.ModuleType):
        yield getattr(value, "__name__", None) or repr(value)
        return
    if callable(value) and _package(value) in libraries:
        yield f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    yield type(value).__qualname__
    match value:
        case functools.partial():
            parts = [value.func, value.args, value.keywords]
        case types.MethodType():
            parts = [value.__func__, value.__self__]
        case types.FunctionType():
            code, read = value.__code__, set(_names_in(value.__code__))
            yield from _code_words(code)
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            named = {name: value.__globals__[name] for name in sorted(read) if name in value.__globals__}
            parts = [value.__defaults__, value.__kwdefaults__, cells, named, *_read_in_modules(named, read)]
        case Mapping():
            parts = [part for pair in value.items() for part in pair]
        case tuple() | list():
            parts = list(value)
        case set() | frozenset():
            parts = sorted(value, key=repr)
        case type():
            yield value.__module__
            parts = [each for _, each in sorted(vars(value).items()) if isinstance(each, types.FunctionType)]
            parts += _attributes(value) if _package(value) not in INSTALLED else []
            parts += [each for each in value.__bases__ if _package(each) not in INSTALLED]
        case _:
            yield ADDRESS.sub("", repr(value))
            parts = [getattr(value, "__dict__", None)]
            told = callable(value) and type(value).__module__ != "builtins"
            parts += [type(value)] if told or _package(type(value)) not in INSTALLED else []
    for part in parts:
        yield from _words_of(part, seen, libraries)


def _read_in_modules(named: Mapping[str, Any], read: set[str]) -> Iterator[Any]:
    """Yield what code reads in modules of the user's own, in those that it names and in those that these do."""
    waiting, known = [each for each in named.values() if isinstance(each, types.ModuleType)], set[int]()
    for module in waiting:
        if id(module) in known or _package(module) in INSTALLED:
            continue
        known.add(id(module))
        for name in sorted(read & vars(module).keys()):
            found = vars(module)[name]
            if isinstance(found, types.ModuleType):
                waiting.append(found)
            else:
                yield found


def _attributes(kind: type) -> Iterator[Any]:
    """Yield what else a class holds: constants, and functions that are no plain methods."""
    for name, each in sorted(vars(kind).items()):
        match each:
            case types.FunctionType() | types.GetSetDescriptorType() | types.MemberDescriptorType():
                continue
            case staticmethod() | classmethod():
                yield each.__func__
            case property():
                yield from filter(None, (each.fget, each.fset))
            case functools.cached_property():
                yield each.func
            case _ if not name.startswith(("__", "_abc_")):
                yield from (name, each)


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names that code, and the functions defined in it, may read from its module."""
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _names_in(value)


def _code_words(code: types.CodeType) -> Iterator[str]:
    """Yield the instructions, names and constants of compiled code and of the functions defined in it."""
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _code_words(value)
        else:
            yield _literal(value)


def _literal(value: Any) -> str:
    """Return a constant of compiled code, in an order that is the same in every process."""
    if isinstance(value, frozenset):
        return f"frozenset({{{', '.join(map(_literal, _in_order(list(value))))}}})"
    if isinstance(value, tuple) and len(value) > 1:
        return f"({', '.join(map(_literal, value))})"
    return repr(value)


def _in_order(values: Sequence[Any]) -> Sequence[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)
