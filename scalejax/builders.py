"""A model builder as its user wrote it: its name and its parameters, functools.partial seen through."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Builder = Callable[..., Any]


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
