"""One thread for the products of matrices: those of a forecast are small, and threads wait longer than they compute."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

_Asked = ParamSpec("_Asked")
_Given = TypeVar("_Given")


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries, so once


def on_one_thread(function: Callable[_Asked, _Given]) -> Callable[_Asked, _Given]:
    """Return the function, in which BLAS uses one thread."""

    @functools.wraps(function)
    def alone(*args: _Asked.args, **kwargs: _Asked.kwargs) -> _Given:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return alone
