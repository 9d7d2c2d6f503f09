"""The error raised when something given to a network does not fit it."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Raised when something given to a network does not fit it.

    The message says where (the module's path), what was given and what was expected.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.path: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"in {'/'.join(self.path)}: " if self.path else ""
        return where + super().__str__()


@contextmanager
def located(name: str) -> Iterator[None]:
    """Prepends ``name`` to the path of an :class:`InputError` raised in the context."""
    try:
        yield
    except InputError as error:
        error.path = (name, *error.path)
        raise
