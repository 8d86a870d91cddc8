"""Under which names a model is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vecmill.core.config import Settings
from vecmill.core.errors import Error
from vecmill.models.local.files import BUILTIN_NAME
from vecmill.models.resolve import canonical, known_models
from vecmill.server.options import ModelSource


def folder_of(source: ModelSource, settings: Settings) -> Path | None:
    """Return the folder a source names, or None where it names the built-in or a hosted model.

    Raises:
        UnknownNameError: It names no model.
    """
    path = Path(source.spec).expanduser()
    if source.spec.startswith((".", "/", "~")):
        return path.absolute()
    provider, _, name = canonical(source.spec, settings).partition(":")
    return Path(name) if provider == "local" and name != BUILTIN_NAME else None


def spellings(sources: Sequence[ModelSource], settings: Settings) -> dict[str, str]:
    """Return other names under which served models are asked for, and the name each stands for.

    The specification itself, its full form, the catalogue's names of the same model, and `[aliases]` of the
    settings. What would stand for two served models stands for none, and a model whose vectors the operator
    changed (pooling, normalize) is not asked for under the plain one's names.
    """
    plain = [source for source in sources if source.pooling is None and source.normalize is None]
    full = {source.name: _full(source.spec, settings) for source in plain}
    candidates: dict[str, str] = {source.spec: full[source.name] for source in plain}
    for spec in full.values():
        if not _is_path(spec):
            candidates[spec] = spec
            candidates.setdefault(spec.partition(":")[2], spec)
    for known in known_models(settings):
        for spelling in (known.name, known.spec, *known.aliases):
            candidates.setdefault(spelling, known.spec)
    for alias, target in settings.aliases.items():
        candidates[alias] = _full(target, settings)
    own = {source.name for source in sources}
    found: dict[str, str] = {}
    for spelling, spec in candidates.items():
        meant = [name for name, other in full.items() if other == spec]
        if len(meant) == 1 and spelling not in own and not _is_path(spelling):
            found[spelling] = meant[0]
    return found


def _full(spec: str, settings: Settings) -> str:
    if _is_path(spec):
        return str(Path(spec).expanduser().absolute())
    try:
        return canonical(spec, settings)
    except Error:
        return spec


def _is_path(spec: str) -> bool:
    return spec.startswith((".", "/", "~"))
