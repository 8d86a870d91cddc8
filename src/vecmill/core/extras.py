"""Optional packages: import one, or name the extra that brings it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from vecmill.core.errors import MissingExtraError


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: The module's import name.
        extra: The extra of this package that installs it.

    Raises:
        MissingExtraError: It is not installed. A package that is installed but broken raises its own error.
    """
    if not installed(module):
        raise MissingExtraError(
            f"this needs the package {module!r}, which is not installed: pip install 'vecmill[{extra}]'"
        )
    return importlib.import_module(module)


def installed(module: str) -> bool:
    """Say whether a module is there: "azure.identity" may be missing where "azure" is not.

    Args:
        module: The module's import name; the packages above it are imported, it itself is not.
    """
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        if importlib.util.find_spec(".".join(parts[:end])) is None:
            return False
    return True
