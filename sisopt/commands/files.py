"""Files that commands read and write: checked before the work, never replaced unless that is wanted."""

from __future__ import annotations

import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from ..network.atomic_files import replace_files

Arrays = dict[str, npt.NDArray[Any]]
Target = tuple[str, Path]  # the option that names a file, and the file

# RuntimeError: encrypted, or compressed in an unknown way
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def read_arrays(path: Path) -> Arrays:
    """Return the arrays of an .npz archive; nothing in it is executed."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                msg = f"{path} holds a single array: save several by name with numpy.savez"
                raise click.BadParameter(msg)
            arrays = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        msg = f"{path} cannot be read as an .npz archive of arrays: {error}"
        raise click.BadParameter(msg) from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives the bytes of what it did not write
            msg = f"{path} holds {name!r}, which is no array"
            raise click.BadParameter(msg)
    return arrays


def archive_of(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return arrays as a compressed .npz archive: the same bytes for the same arrays."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def check_target(option: str, path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, or that is there and must stay."""
    folder = _real(path).parent if path.is_symlink() else path.parent
    if path.is_dir():
        msg = f"{path} is a folder"
    elif path.exists() and not path.is_file():
        msg = f"{path} is no ordinary file"
    elif path.exists() and not force:
        msg = f"{path} is there already; --force replaces it"
    elif not folder.is_dir():
        msg = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK):
        msg = f"the folder {folder} cannot be written to"
    else:
        return
    raise click.BadParameter(msg, param_hint=option)


def check_targets(targets: Sequence[Target], sources: Sequence[Target], *, force: bool) -> None:
    """Refuse files that cannot be written, and one that is written twice or is read too."""
    known = {_real(path): name for name, path in sources}
    for option, path in targets:
        check_target(option, path, force=force)
        if _real(path) in known:
            msg = f"{path} is the file of {known[_real(path)]} too"
            raise click.BadParameter(msg, param_hint=option)
        known[_real(path)] = option


def same_file(first: Path, second: Path) -> bool:
    """Return whether two paths lead to one file."""
    return _real(first) == _real(second)


def check_page_extra() -> None:
    """Refuse to begin what ends with a page where there is nothing to make it with."""
    try:
        import jinja2  # noqa: F401, PLC0415  an extra
        import matplotlib  # noqa: F401, PLC0415  another
    except ModuleNotFoundError as error:
        msg = f'an HTML report needs {error.name}: pip install "sisopt[report]"'
        raise ModuleNotFoundError(msg, name=error.name) from None


def write_file(option: str, path: Path, data: bytes, *, force: bool) -> None:
    """Write a file, whole or not at all."""
    check_target(option, path, force=force)  # it may have come up meanwhile
    try:
        real = _real(path)  # a link stays one
        replace_files(real.parent, {real.name: data})
    except OSError as error:
        msg = f"{path} could not be written: {error.strerror or error}"
        raise click.ClickException(msg) from None


def _real(path: Path) -> Path:
    """Return where a file is, whatever links lead there."""
    return Path(os.path.realpath(path))
