"""How a target was made decides how what changed is embedded; what was asked otherwise is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vecmill.core.config import Settings
from vecmill.core.errors import InputError, SpaceMismatchError
from vecmill.core.space import Manifest
from vecmill.jobs.plan import JobOptions
from vecmill.jobs.sync_targets import SyncTarget
from vecmill.models.resolve import canonical


def as_made(target: SyncTarget, options: Mapping[str, Any], settings: Settings) -> JobOptions:
    """Return a job's options: those asked for, and those the target was made with.

    Raises:
        InputError: The target does not say what made it, or keeps no texts.
        SpaceMismatchError: It was made with another template, text column or policy.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not target.exists:
        return JobOptions(**given)
    made = target.manifest
    if made is None:
        raise InputError(f"{target.name} does not say which model made it: only what vecmill made is synced")
    if target.text_column is None:
        raise InputError(
            f"{target.name} does not keep its texts, so nobody can see what changed: make it again with them"
        )
    taken = {
        **_model(made, given, settings),
        **_texts(made, given, target),
        **_columns(made, given, target),
    }
    for name in ("long_text", "input_type"):
        taken[name] = _agreed(name, given.get(name), getattr(made, name), target.name)
    if made.max_tokens is not None:
        taken["max_tokens"] = _agreed("max_tokens", given.get("max_tokens"), made.max_tokens, target.name)
    return JobOptions(**{**given, **taken})


def _model(made: Manifest, given: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Name the model that made the target, unless another is asked for: that is compared once it is open."""
    asked = given.get("model")
    if asked is not None and canonical(asked, settings, base_url=given.get("base_url")) != made.model:
        return {}
    if made.provider == "local":
        return {"model": asked or made.model, "precision": given.get("precision", made.precision)}
    return {"model": asked or made.model, "dimensions": given.get("dimensions", made.dimensions)}


def _texts(made: Manifest, given: Mapping[str, Any], target: SyncTarget) -> dict[str, Any]:
    """Take the texts from where they came; a collection filled by hand names its column, not its manifest."""
    template, text, name = given.get("template"), given.get("text"), target.name
    if made.template is not None:
        if text is not None:
            raise _otherwise(name, f"with the template {made.template!r}", f"--text {text}")
        return {"template": _agreed("template", template, made.template, name)}
    if template is not None:
        raise _otherwise(name, f"from the column {target.text_column!r}", f"the template {template!r}")
    return {"text": _agreed("text", text, target.text_column, name)}


def _columns(made: Manifest, given: Mapping[str, Any], target: SyncTarget) -> dict[str, Any]:
    """Give the columns the names they have; other names are refused."""
    names = dict(made.renamed)
    if made.vector != "embedding":
        names["embedding"] = made.vector
    if made.template is not None and made.text not in (None, "text"):
        names["text"] = str(made.text)
    for role, asked in (given.get("output_column") or {}).items():
        name = names.get(role, role)
        if name != asked:
            raise InputError(
                f"{target.name} names its column of {role} {name!r}, not {asked!r}: leave out "
                "--output-column, or sync into another target"
            )
    usage = made.column("usage") in target.columns and target.kind == "set"
    return {"output_column": names, "usage": usage}


def _agreed(what: str, asked: Any, made: Any, name: str) -> Any:
    if asked is not None and asked != made:
        raise _otherwise(name, f"with {what.replace('_', ' ')} {made!r}", repr(asked))
    return made


def _otherwise(name: str, made: str, asked: str) -> SpaceMismatchError:
    return SpaceMismatchError(
        f"{name} was made {made}, not {asked}: the vectors could not be compared; leave that option out, or "
        "embed everything anew into another target"
    )
