"""What a model is called, and how the name becomes an open provider.

A specification is a name of the catalogue, a name registered with `vecmill model register`, a profile of
`vecmill.toml`, an alias of its `[aliases]`, "provider:model", or a path. A path begins with "./", "../", "/"
or "~"; any other existing folder may be named without that, unless its name is one of the others. These win,
in this order: names of local models, registered ones, profiles, aliases, the catalogue's hosted models.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vecmill.core import catalog, durable, registry
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import ConfigError, InputError, UnknownNameError, unknown_name
from vecmill.models.base import Provider
from vecmill.models.hosted.connection import Facts


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be named: where the name comes from and what it stands for. None: unknown.

    Attributes:
        name, spec: What is typed, and the full name it stands for.
        origin: "built in", "catalogue", "registered", "alias", or the file of a profile.
        priced, source: Of when the price is, and from which page; "" where a profile says it.
        key: What is known of the key, for people: "OPENAI_API_KEY: set". Never the key.
        hosted: Whether it is asked over a network.
    """

    name: str
    spec: str
    origin: str
    description: str = ""
    dimensions: int | None = None
    max_tokens: int | None = None
    languages: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    provider: str = ""
    mrl: bool | None = None
    least_dimensions: int | None = None
    max_inputs: int | None = None
    max_request_tokens: int | None = None
    usd_per_million_tokens: float | None = None
    batch_usd_per_million_tokens: float | None = None
    priced: str = ""
    source: str = ""
    key: str = ""
    hosted: bool = False


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
    needs_key: bool = True,
    pooling: str | None = None,
    normalize: bool | None = None,
    streams: int | None = None,
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
        needs_key: Whether a hosted model's key must be there now; else a request raises MissingKeyError.
        pooling: How a local model pools, instead of as its folder says; another space.
        normalize: Whether its vectors get unit length, likewise.
        streams: Batches a local model computes side by side; None takes one per physical core.

    Raises:
        UnknownNameError: No model of that name, or several; the message lists them.
        InputError: An argument is for local models and this one is hosted, or the other way round.
        MissingKeyError: There is no key; the message names the variables that would do.
        ConfigError, StorageError: A profile, or the model's files, are not usable.
    """
    settings = settings or load_settings()
    full = canonical(spec or settings.model, settings, base_url=base_url)
    provider, _, name = full.partition(":")
    load = registry.load("providers", provider)
    opened: Provider
    own: dict[str, object] = {"device": device, "precision": precision, "streams": streams}
    own |= {"pooling": pooling, "normalize": normalize}
    if provider in HOSTED:
        _refuse_given(full, "hosted", threads=threads, **own)
        opened = load(
            name,
            settings=settings,
            max_tokens=max_tokens,
            dimensions=dimensions,
            base_url=base_url,
            user=user,
            send_dimensions=not cached,
            needs_key=needs_key,
        )
        return opened
    _refuse_given(full, "local", base_url=base_url, user=user)
    opened = load(
        name,
        settings=settings,
        threads=settings.threads if threads is None else threads,
        max_tokens=max_tokens,
        **own,
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


def canonical(spec: str, settings: Settings, *, base_url: str | None = None) -> str:
    """Return a specification as "provider:model" with a path made absolute. Asks nothing.

    "openai:MODEL" is "azure:MODEL" where OPENAI_API_TYPE says that the OPENAI_ variables are Azure's, unless
    the caller says a `base_url` that is not Azure's.

    Raises:
        UnknownNameError: No model of that name, or several.
        ConfigError: "azure" alone, and no deployment is set.
    """
    full = _canonical(spec, settings, _registered(settings), settings.aliases)
    provider, _, name = full.partition(":")
    if provider == "openai" and name not in settings.profiles:
        from vecmill.models.hosted import addresses, azure

        elsewhere = base_url is not None and not addresses.is_vendors("azure", base_url)
        return f"azure:{name}" if azure.is_meant() and not elsewhere else full
    return full


def _canonical(
    spec: str, settings: Settings, registered: Mapping[str, str], aliases: Mapping[str, str]
) -> str:
    if _is_path(spec):
        return _local(spec)
    if (own := _reserved(spec)) is not None:
        return own
    if spec in registered:
        return _canonical(registered[spec], settings, _without(registered, spec), aliases)
    if spec in settings.profiles:
        return f"{settings.profiles[spec].provider}:{spec}"
    if spec in aliases:
        return _canonical(aliases[spec], settings, registered, _without(aliases, spec))
    if spec == "azure":
        from vecmill.models.hosted import azure

        return f"azure:{azure.default_deployment(settings)}"
    if found := catalog.candidates(spec):
        return _unique(spec, [known.spec for known in found])
    return _local(spec) if Path(spec).is_dir() else _spelt_out(spec, settings)


def _spelt_out(spec: str, settings: Settings) -> str:
    """Return "provider:model" as it is, if there is such a provider and may be such a model."""
    provider, colon, name = spec.partition(":")
    if not colon or not name or provider not in registry.names("providers"):
        raise unknown_name("model", spec, _names(settings))
    if provider == "local":
        if not Path(name).expanduser().is_dir():
            raise unknown_name("local model or folder", name, _names(settings))
        return _local(name)
    profile = settings.profiles.get(name)
    if profile is not None and profile.provider != provider:
        raise UnknownNameError(
            f"{provider}:{name} is no model: the profile {name!r} is of {profile.provider}; say {name}"
        )
    return spec


def _reserved(spec: str) -> str | None:
    """Return what a name stands for that nobody can take over: a full name, an alias, a local model."""
    known = catalog.entry(spec)
    if known is not None and (spec in (known.spec, *known.aliases) or known.provider == "local"):
        return known.spec
    return None


def _without(table: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in table.items() if key != name}


def _unique(spec: str, found: list[str]) -> str:
    if len(found) == 1:
        return found[0]
    raise UnknownNameError(f"{spec!r} is run by more than one provider: say {' or '.join(found)}")


def shadowed_folder(spec: str, settings: Settings | None = None) -> Path | None:
    """Return the folder of this very name that is not meant, because the name stands for another model."""
    if _is_path(spec) or not Path(spec).is_dir():
        return None
    settings = settings or load_settings()
    named = (
        bool(catalog.entry(spec) or catalog.candidates(spec))
        or spec == "azure"
        or any(spec in table for table in (_registered(settings), settings.profiles, settings.aliases))
    )
    return Path(spec) if named else None


def _is_path(spec: str) -> bool:
    return spec.startswith(("./", "../", "/", "~")) or spec in (".", "..")


def _local(folder: str) -> str:
    return f"local:{Path(folder).expanduser().resolve()}"


def known_models(settings: Settings | None = None) -> list[KnownModel]:
    """Return every model that has a name here: the catalogue's, profiles, registered ones, aliases.

    Asks nothing: not the network, no keyring, no vault.
    """
    settings = settings or load_settings()
    listed = [_catalogued(entry, settings) for entry in catalog.entries()]
    listed += [_profiled(name, settings) for name in settings.profiles]
    listed += [KnownModel(name, spec, "registered") for name, spec in _registered(settings).items()]
    return listed + [KnownModel(name, spec, "alias") for name, spec in settings.aliases.items()]


def describe_model(spec: str, *, settings: Settings | None = None) -> KnownModel:
    """Say what is known of a hosted model without opening it: it needs no key, and nothing is asked.

    Raises:
        UnknownNameError: No model of that name, or several.
        InputError: It is a local model: open it, it knows itself.
        ConfigError: Its profile is not usable.
    """
    settings = settings or load_settings()
    full = canonical(spec, settings)
    provider, _, name = full.partition(":")
    if provider not in HOSTED:
        raise InputError(f"{full} is a local model: open_model tells what it is")
    if (known := catalog.entry(full)) is not None and name not in settings.profiles:
        return _catalogued(known, settings)
    if name in settings.profiles:
        return _profiled(name, settings)
    return _hosted(full, "not in the catalogue", settings, None)


def _catalogued(entry: catalog.CatalogEntry, settings: Settings) -> KnownModel:
    if entry.provider in HOSTED:
        return _hosted(entry.spec, "catalogue", settings, entry)
    return KnownModel(
        entry.name,
        entry.spec,
        "built in",
        entry.description,
        entry.dimensions,
        entry.max_tokens,
        entry.languages,
        entry.aliases,
        provider=entry.provider,
        mrl=entry.mrl,
        usd_per_million_tokens=entry.usd_per_million_tokens,
        source=entry.source,
    )


def _profiled(name: str, settings: Settings) -> KnownModel:
    profile = settings.profiles[name]
    known = catalog.entry(f"{profile.provider}:{profile.model or name}")
    if known is None and profile.provider == "azure" and profile.model:
        known = catalog.facts(profile.model)
    described = _hosted(f"{profile.provider}:{name}", profile.origin, settings, known)
    model = profile.deployment or profile.model or ""
    return replace(
        described, name=name, description=f"profile: {model} at {profile.base_url or profile.provider}"
    )


def _hosted(full: str, origin: str, settings: Settings, entry: catalog.CatalogEntry | None) -> KnownModel:
    from vecmill.models.hosted import azure, endpoints

    provider, _, name = full.partition(":")
    sources = endpoints.Sources.of(provider, name, settings)
    facts = endpoints.facts_of(sources, entry, price=provider != "azure")
    priced = entry if facts.usd_per_million_tokens is not None and _prices(entry, facts) else None
    return KnownModel(
        name,
        full,
        origin,
        "" if entry is None else entry.description,
        facts.dimensions,
        facts.max_tokens,
        provider=provider,
        mrl=facts.mrl,
        least_dimensions=facts.least_dimensions if facts.mrl else None,
        max_inputs=facts.max_inputs,
        max_request_tokens=facts.max_request_tokens,
        usd_per_million_tokens=facts.usd_per_million_tokens,
        batch_usd_per_million_tokens=facts.batch_usd_per_million_tokens,
        priced="" if priced is None else priced.priced,
        source="" if priced is None else priced.source,
        key=azure.key_status(sources) if provider == "azure" else endpoints.key_status(sources),
        hosted=True,
    )


def _prices(entry: catalog.CatalogEntry | None, facts: Facts) -> bool:
    """Say whether the price is the catalogue's."""
    return entry is not None and entry.usd_per_million_tokens == facts.usd_per_million_tokens


def register_model(name: str, spec: str, *, settings: Settings | None = None) -> None:
    """Give a model a name of your own, kept in `VECMILL_HOME/models.toml`. An earlier one is replaced.

    Raises:
        InputError: The name is taken by the catalogue or would read as a path or provider.
        UnknownNameError: The specification names no model.
    """
    settings = settings or load_settings()
    if not name or any(sign in name for sign in ":/\\~") or name.startswith("."):
        raise InputError(f"{name!r} cannot be a model's name: leave out ':', '/', '~' and a leading '.'")
    if catalog.entry(name) is not None or catalog.candidates(name):
        raise InputError(f"{name!r} is a name of the catalogue: choose another")
    if name in settings.profiles or name in HOSTED:
        what = "profile" if name in settings.profiles else "provider"
        raise InputError(f"{name!r} is the name of a {what}: choose another")
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
    models = known_models(settings)
    return [
        *(name for model in models for name in (model.name, *model.aliases)),
        *(model.spec for model in models if model.hosted),
    ]
