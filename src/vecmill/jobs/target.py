"""A job's target: where the output goes, whether it is there already, and what must not be replaced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vecmill.core.durable import TEMP_SUFFIX
from vecmill.core.errors import InputError, StorageError
from vecmill.data.sidecar import INDEX_NAME
from vecmill.data.vector_set import read_manifest
from vecmill.jobs.remote import Remote
from vecmill.jobs.state import StateDir

Stamp: TypeAlias = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Target:
    """Where an output goes.

    Attributes:
        path: Where it is made: the target itself, or for a URL a folder of `VECMILL_HOME`.
        format: A layout of `data.writers.FORMATS`.
        remote: Where it is uploaded, or None.
    """

    path: Path
    format: str
    remote: Remote | None

    @property
    def name(self) -> str:
        """What the user called it."""
        return self.remote.url if self.remote else str(self.path)

    @property
    def state(self) -> StateDir:
        """The folder beside the output that holds an unfinished job."""
        return StateDir.beside(self.path)

    @property
    def lock_path(self) -> Path:
        """Beside the output and not in the state folder, which comes and goes while others wait."""
        return self.path.with_name(f".{self.path.name}.vecmill-lock")

    def complete(self, fingerprint: str, *, overwrite: bool) -> bool:
        """Whether the output is there, made by this plan. Asked to overwrite, the answer is no.

        Raises:
            InputError: Something else is there and is not to be overwritten.
        """
        if self.remote is not None:
            return self.remote.complete(fingerprint, overwrite=overwrite)
        if overwrite or not self.path.exists() or self._holds_only_parts_of(fingerprint):
            return False
        try:
            found = read_manifest(self.path)
            what = (
                "was not made by vecmill"
                if found is None
                else "was made from other input or by other options"
            )
        except (StorageError, InputError) as error:
            found, what = None, f"cannot be read ({error})"
        if found is not None and found.plan == fingerprint:
            return True
        raise InputError(f"{self.path} is there already and {what}: choose another name, or --overwrite it")

    def resumable(self, fingerprint: str, *, overwrite: bool) -> int:
        """Return how many windows of this plan are finished.

        Raises:
            InputError: An unfinished job with other settings is here and is not to be dropped.
        """
        held, windows = self.state.fingerprint(), len(self.state.windows())
        if held == fingerprint:
            return windows
        if windows and not overwrite:
            raise InputError(
                f"{self.state.path} holds an unfinished job with other input or options ({windows} windows "
                f"done): repeat its command to finish it, or --overwrite to drop it"
            )
        return 0

    def stamp(self) -> Stamp:
        """Return what tells this output from one that replaced it: size, time, inode; None where none is."""
        path = self.path / INDEX_NAME if self.path.is_dir() else self.path
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def _holds_only_parts_of(self, fingerprint: str) -> bool:
        """Whether the output is a folder that is empty, or holds what this plan began to publish."""
        if not self.path.is_dir():
            return False
        ours = f"part-{fingerprint[:8]}-"
        return all(p.name.startswith(ours) or p.name.endswith(TEMP_SUFFIX) for p in self.path.iterdir())
