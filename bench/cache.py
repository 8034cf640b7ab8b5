"""A folder outside of the repository for what takes long to fetch or to compute."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory


def cache_dir() -> Path:
    """Return $SISOPT_CACHE, or ~/.cache/sisopt, made if it is not there."""
    folder = Path(os.environ.get("SISOPT_CACHE") or "~/.cache/sisopt").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def store(write: Callable[[Path], None], *names: str) -> None:
    """Let ``write(folder)`` make files of these names and move them into the cache, each whole or not at all."""
    cache = cache_dir()
    with TemporaryDirectory(dir=cache) as scratch:
        write(Path(scratch))
        for name in names:
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(scratch) / name, cache / name)
