"""Files that commands read and write: checked before the work, never replaced unless that is wanted."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from ..network.atomic_files import replace_files

Arrays = dict[str, npt.NDArray[Any]]


def read_arrays(path: Path) -> Arrays:
    """Return the arrays of an .npz archive; nothing in it is executed."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                msg = f"{path} holds a single array: save several by name with numpy.savez"
                raise click.BadParameter(msg)
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"{path} cannot be read as an .npz archive of arrays: {error}"
        raise click.BadParameter(msg) from None


def archive_of(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return arrays as a compressed .npz archive: the same bytes for the same arrays."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def check_target(option: str, path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, or that is there and must stay."""
    if path.is_dir():
        msg = f"{path} is a folder"
    elif path.exists() and not force:
        msg = f"{path} is there already; --force replaces it"
    elif not path.parent.is_dir():
        msg = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        msg = f"the folder {path.parent} cannot be written to"
    else:
        return
    raise click.BadParameter(msg, param_hint=option)


def write_file(option: str, path: Path, data: bytes, *, force: bool) -> None:
    """Write a file, whole or not at all."""
    check_target(option, path, force=force)  # it may have come up meanwhile
    try:
        replace_files(path.parent, {path.name: data})
    except OSError as error:
        msg = f"{path} could not be written: {error.strerror or error}"
        raise click.ClickException(msg) from None
