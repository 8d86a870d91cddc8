"""An output on a file system of fsspec's: made here, then uploaded, what makes it valid last.

The job itself runs in a folder of `VECMILL_HOME`, so a crash loses nothing. The receipt is uploaded after all
else and names the plan: with it the output is complete, without it not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecmill.core.errors import InputError, WriteError
from vecmill.data.sidecar import INDEX_NAME, sidecar_path
from vecmill.data.sources import file_system

_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory"})
"""Stores in which an object appears whole; elsewhere it is uploaded beside and renamed."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A URL to write to, and the local path at which the output is made."""

    url: str
    staging: Path

    @classmethod
    def of(cls, url: str, home: Path) -> Remote:
        """Choose the local path; the same URL always gets the same one."""
        name = url.rstrip("/").rpartition("/")[2]
        if not name or "://" not in url:
            raise InputError(f"{url} does not end with the output's name")
        folder = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
        return cls(url.rstrip("/"), home / "outputs" / folder / name)

    def complete(self, fingerprint: str, *, overwrite: bool) -> bool:
        """Whether this plan's output is there already; refuses another one.

        Raises:
            InputError: Something else is there and is not to be overwritten.
        """
        system, path = file_system(self.url)
        if overwrite or not system.exists(path):
            return False
        if self.receipt().get("plan") == fingerprint:
            return True
        raise InputError(f"{self.url} is there already, from other input or options: --overwrite replaces it")

    def receipt(self) -> dict[str, Any]:
        """Return the receipt beside the output, {} where there is none."""
        system, path = file_system(self.url)
        try:
            found = json.loads(system.cat_file(f"{path}.receipt.json"))
        except (OSError, ValueError):
            return {}
        return dict(found) if isinstance(found, dict) else {}

    def upload(self) -> None:
        """Upload what stands at the local path and beside it; the receipt last.

        Raises:
            WriteError: The other side failed; the same command uploads again and embeds nothing.
        """
        system, path = file_system(self.url)
        receipt = f"{path}.receipt.json"
        try:
            if system.exists(receipt):
                system.rm_file(receipt)
            if self.staging.is_dir():
                self._upload_folder(system, path)
            else:
                _put(system, self.staging, path)
                side = sidecar_path(self.staging)
                if side.exists():
                    _put(system, side, sidecar_path(Path(path)).as_posix())
            for suffix in ("errors.jsonl", "receipt.json"):
                local = self.staging.with_name(f"{self.staging.name}.{suffix}")
                if local.exists():
                    _put(system, local, f"{path}.{suffix}")
                elif system.exists(f"{path}.{suffix}"):
                    system.rm_file(f"{path}.{suffix}")
        except (OSError, ValueError) as error:
            raise WriteError(
                f"{self.url} cannot be written: {error}; what is made stands in {self.staging}, and the "
                f"same command uploads it again"
            ) from error

    def _upload_folder(self, system: Any, path: str) -> None:
        index = self.staging / INDEX_NAME
        parts = sorted(entry for entry in self.staging.iterdir() if entry != index)
        for part in parts:
            _put(system, part, f"{path}/{part.name}")
        _put(system, index, f"{path}/{INDEX_NAME}")
        wanted = {part.name for part in parts} | {INDEX_NAME}
        for name in system.ls(path, detail=False):
            last = str(name).rstrip("/").rpartition("/")[2]
            if last not in wanted and last.startswith("part-"):
                system.rm_file(name)


def _put(system: Any, local: Path, path: str) -> None:
    system.makedirs(path.rpartition("/")[0] or "/", exist_ok=True)
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    if protocols & _ATOMIC:
        system.put_file(str(local), path)
        return
    beside = f"{path}.vecmill-tmp"
    system.put_file(str(local), beside)
    system.mv(beside, path)
