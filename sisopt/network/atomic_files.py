"""Files that appear whole or not at all, whatever kills the process or fills the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from ..errors import InvalidInputError

TEMPORARY = ".sisopt-unfinished-"  # what the names of files begin with that are still being written


def file_to_write(path: str | os.PathLike[str]) -> Path:
    """Return the file that a path names, links followed; refuse one that is a folder, or is in none."""
    target = Path(path).resolve()
    if target.is_dir() or not target.parent.is_dir():
        found = "it is a folder" if target.is_dir() else f"there is no folder {str(target.parent)!r}"
        msg = f"path must name a file in a folder that exists, got {str(path)!r}: {found}"
        raise InvalidInputError(msg)
    return target


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together, each in place of the one of its name; the last one says that all are there.

    All are on the disk under other names before the first one takes its place; an older last file goes before that.

    Raises
    ------
    OSError
        If the system refuses: then no temporary file stays, and where room ran out no other file was touched.
    """
    waiting: dict[str, Path] = {}
    try:
        for name, data in files.items():
            waiting[name] = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
            _write(waiting[name], data)
        last = name
        if len(files) > 1 and (folder / last).exists():
            (folder / last).unlink()
            sync_folder(folder)
        for name in files:
            os.replace(waiting[name], folder / name)
            del waiting[name]
            sync_folder(folder)
    finally:
        for path in waiting.values():
            with contextlib.suppress(OSError):  # what went wrong first is what counts; the next opening removes it
                path.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed was still writing."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, for good."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names of a folder's files are on the disk."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that keep folders their own way
            raise
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
