"""Python objects of the user's own: found by "package.module:object"; a builder's name and parameters.

functools.partial is seen through.
"""

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scalejax.errors import SweepError
from scalejax.text import first_line

Builder = Callable[..., Any]


def load_object(text: str) -> Any:
    """Return the Python object that "package.module:object" names; the current folder is searched too.

    Raises:
        SweepError: there is no such module or object, or the module fails when it is imported.
    """
    module_name, _, path = text.partition(":")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", module_name) or not re.fullmatch(r"[A-Za-z_][\w.]*", path):
        raise SweepError(f"{text!r} names no Python object; expected package.module:object")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            where = f"neither installed nor in {here}"
            raise SweepError(f"{text}: there is no module {error.name}, {where}; correct the name") from error
        raise SweepError(f"{text}: {module_name} needs the module {error.name}, which is not installed") from error
    except Exception as error:
        problem = f"importing {module_name} fails with {type(error).__name__}: {first_line(error)}"
        raise SweepError(f"{text}: {problem}; mend the module") from error
    finally:
        sys.path.remove(here)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise SweepError(f"{text}: {module_name} has no {path}; correct the name") from None
    return found


def name_of(builder: Builder) -> str:
    """Return what a builder is called in rows and sentences; a partial like its function, unless it has a name."""
    own = getattr(builder, "__name__", None)
    if own is None and isinstance(builder, functools.partial):
        return name_of(builder.func)
    return type(builder).__name__ if own is None else str(own)


def qualified_name(builder: Builder) -> str:
    """Return the module and the full name of a builder, for example "models.mine:Net"."""
    if isinstance(builder, functools.partial):
        return qualified_name(builder.func)
    name = getattr(builder, "__qualname__", type(builder).__qualname__)
    return f"{getattr(builder, '__module__', '') or ''}:{name}"


def bound(builder: Builder) -> Mapping[str, Any]:
    """Return the keywords that a partial, or one inside it, has filled in; none of any other builder."""
    return {**bound(builder.func), **builder.keywords} if isinstance(builder, functools.partial) else {}


def parameters(builder: Builder) -> dict[str, inspect.Parameter]:
    """Return the parameters of a builder by name; keywords of a partial are defaults.

    Raises:
        TypeError, ValueError: Python cannot tell them.
    """
    if isinstance(builder, functools.partial):
        inner = list(parameters(builder.func).items())[len(builder.args) :]
        return {
            name: each.replace(default=builder.keywords[name], kind=each.KEYWORD_ONLY)
            if name in builder.keywords
            else each
            for name, each in inner
        }
    if not inspect.isclass(builder):
        return dict(inspect.signature(builder).parameters)
    # A Flax class hides its signature behind its metaclass; its __init__ tells it.
    return dict(list(inspect.signature(builder.__init__).parameters.items())[1:])
