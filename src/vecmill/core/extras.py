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
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise MissingExtraError(
            f"this needs the package {module!r}, which is not installed: pip install 'vecmill[{extra}]'"
        )
    return importlib.import_module(module)
