"""What a model is called, and how the name becomes an open provider.

A specification is a name of the catalogue, a name registered with `vecmill model register`,
"provider:model", or a path. A path begins with "./", "../", "/" or "~"; any other existing folder may be
named without that, unless its name is one of the others: these win.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from vecmill.core import catalog, durable, registry
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import ConfigError, InputError, unknown_name
from vecmill.models.base import Provider


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be named: where the name comes from and what it stands for."""

    name: str
    spec: str
    origin: str
    description: str = ""
    dimensions: int | None = None
    max_tokens: int | None = None
    languages: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


HOSTED = ("openai", "azure", "github")
"""Providers asked over a network, which have other options than local ones."""


def open_model(
    spec: str | None = None,
    *,
    settings: Settings | None = None,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    max_tokens: int | None = None,
    dimensions: int | None = None,
    base_url: str | None = None,
    user: str | None = None,
    cached: bool = True,
) -> Provider:
    """Open a model by its name. A hosted one is not asked anything yet.

    Args:
        spec: "minilm", "local:NAME", a folder, a registered name, "openai:MODEL", "azure:DEPLOYMENT",
            "github:PUBLISHER/NAME", or a profile's name; None takes the settings' default.
        settings: None reads environment and `vecmill.toml`.
        device: Where a local model runs; None is the CPU.
        precision: "float32" or "int8", of a local model; None takes the model's own.
        threads: Threads of local inference; None takes the settings', 0 every usable core.
        max_tokens: Another limit of tokens per text: a higher one for models that allow it.
        dimensions: Components of the vectors; fewer than all only of models that can be shortened.
        base_url: Where a hosted model is asked.
        user: Told to a hosted model's provider as the end user.
        cached: Whether vectors are kept: then full ones are asked and cut here, else the provider cuts.

    Raises:
        UnknownNameError: No model of that name, or several; the message lists them.
        InputError: An argument is for local models and this one is hosted, or the other way round.
        MissingKeyError: There is no key; the message names the variables that would do.
        ConfigError, StorageError: A profile, or the model's files, are not usable.
    """
    settings = settings or load_settings()
    full = canonical(spec or settings.model, settings)
    provider, _, name = full.partition(":")
    load = registry.load("providers", provider)
    opened: Provider
    if provider in HOSTED:
        _refuse_given(full, "hosted", device=device, precision=precision, threads=threads)
        opened = load(
            name,
            settings=settings,
            max_tokens=max_tokens,
            dimensions=dimensions,
            base_url=base_url,
            user=user,
            send_dimensions=not cached,
        )
        return opened
    _refuse_given(full, "local", base_url=base_url, user=user)
    opened = load(
        name,
        settings=settings,
        device=device,
        precision=precision,
        threads=settings.threads if threads is None else threads,
        max_tokens=max_tokens,
    )
    if dimensions is not None and dimensions != opened.info.dimensions:
        raise InputError(
            f"{full} gives vectors of {opened.info.dimensions} dimensions, not {dimensions}: it cannot be "
            f"shortened; leave dimensions out"
        )
    return opened


def _refuse_given(full: str, kind: str, **arguments: object) -> None:
    """Refuse arguments that mean nothing for this kind of model."""
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        other = "local" if kind == "hosted" else "hosted"
        raise InputError(
            f"{full} is a {kind} model; leave out {' and '.join(given)}, which is for {other} ones"
        )


def canonical(spec: str, settings: Settings) -> str:
    """Return a specification as "provider:model" with a path made absolute.

    Raises:
        UnknownNameError: No model of that name.
    """
    return _canonical(spec, settings, _registered(settings))


def _canonical(spec: str, settings: Settings, registered: dict[str, str]) -> str:
    if _is_path(spec):
        return _local(spec)
    if (known := catalog.entry(spec)) is not None:
        return known.spec
    if spec in registered:
        others = {name: stands for name, stands in registered.items() if name != spec}
        return _canonical(registered[spec], settings, others)
    if Path(spec).is_dir():
        return _local(spec)
    provider, colon, name = spec.partition(":")
    if not colon or provider not in registry.names("providers"):
        raise unknown_name("model", spec, _names(settings))
    if provider != "local":
        return spec
    if not Path(name).expanduser().is_dir():
        raise unknown_name("local model or folder", name, _names(settings))
    return _local(name)


def shadowed_folder(spec: str, settings: Settings | None = None) -> Path | None:
    """Return the folder of this very name that is not meant, because the name stands for another model."""
    if _is_path(spec) or not Path(spec).is_dir():
        return None
    named = catalog.entry(spec) is not None or spec in _registered(settings or load_settings())
    return Path(spec) if named else None


def _is_path(spec: str) -> bool:
    return spec.startswith(("./", "../", "/", "~")) or spec in (".", "..")


def _local(folder: str) -> str:
    return f"local:{Path(folder).expanduser().resolve()}"


def known_models(settings: Settings | None = None) -> list[KnownModel]:
    """Return every model that has a name here: the catalogue's, then registered ones."""
    settings = settings or load_settings()
    listed = [
        KnownModel(
            entry.name,
            entry.spec,
            "built in",
            entry.description,
            entry.dimensions,
            entry.max_tokens,
            entry.languages,
            entry.aliases,
        )
        for entry in catalog.entries()
    ]
    return listed + [KnownModel(name, spec, "registered") for name, spec in _registered(settings).items()]


def register_model(name: str, spec: str, *, settings: Settings | None = None) -> None:
    """Give a model a name of your own, kept in `VECMILL_HOME/models.toml`. An earlier one is replaced.

    Raises:
        InputError: The name is taken by the catalogue or would read as a path or provider.
        UnknownNameError: The specification names no model.
    """
    settings = settings or load_settings()
    if not name or any(sign in name for sign in ":/\\~") or name.startswith("."):
        raise InputError(f"{name!r} cannot be a model's name: leave out ':', '/', '~' and a leading '.'")
    if catalog.entry(name) is not None:
        raise InputError(f"{name!r} is a name of the catalogue: choose another")
    if spec == name:
        raise InputError(f"{name!r} would stand for itself: give a folder or provider:model")
    table = {**_registered(settings), name: canonical(spec, settings)}
    durable.make_dir(settings.home)
    lines = [
        "[models]",
        *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in sorted(table.items())),
    ]
    durable.write_bytes(settings.home / "models.toml", ("\n".join(lines) + "\n").encode())


def _registered(settings: Settings) -> dict[str, str]:
    path = settings.home / "models.toml"
    if not path.is_file():
        return {}
    try:
        table = tomllib.loads(path.read_text("utf-8")).get("models", {})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; mend it or remove it") from error
    return {str(name): str(spec) for name, spec in table.items()}


def _names(settings: Settings) -> list[str]:
    return [name for model in known_models(settings) for name in (model.name, *model.aliases)]
