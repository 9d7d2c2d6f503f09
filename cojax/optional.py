"""Packages that only some users need."""

import importlib
from typing import Any


def require(module: str, purpose: str, package: str, extra: str) -> Any:
    """Imports a module of an optional package.

    Args:
      module: the name of the module.
      purpose: what needs it, such as "reading videos".
      package: the name of the package that it belongs to.
      extra: the extra of cojax that installs the package.

    Raises:
      ImportError: if it cannot be imported, with how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"{purpose} needs {package}: pip install 'cojax[{extra}]'"
        raise ImportError(message) from error
