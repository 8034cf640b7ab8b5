"""Finished layers on disk, so that a run that was killed at any moment goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, InvalidInputError
from .atomic_files import TEMPORARY, make_folder, remove_temporary, replace_files
from .json_values import json_text, json_value

FORMAT, VERSION = "sisopt checkpoint", 1
MANIFEST = "manifest.json"

_RECORD = re.compile(r"\d{4,}-[\w.-]*\.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_SLUG = 80
_LONGEST_VALUE = 60  # characters of a value in a message
_ABSENT = object()


class Checkpoint:
    """A folder of finished layers: arrays as safetensors, what was found out about them as JSON.

    Every file appears whole or not at all, a layer counts as finished with its last one, and nothing that is there is
    given up before what takes its place is on the disk.

    Parameters
    ----------
    directory : path
        A folder that an earlier run left, or an empty or a new one.
    fingerprint : mapping
        What the layers depend on, as values that JSON can hold: a folder with another one is refused.

    Raises
    ------
    CheckpointError
        If the folder holds something else, is damaged, was made with another fingerprint or cannot be written to; what
        it holds stays as it is.
    """

    def __init__(self, directory: str | PathLike[str], fingerprint: Mapping[str, Any]) -> None:
        _safetensors()
        self.directory = Path(directory)
        wanted: dict[str, Any] = json_value("fingerprint", fingerprint)
        try:
            held = [path.name for path in self.directory.iterdir()] if self.directory.exists() else []
        except OSError as error:
            self._fail("cannot be read", error)
        if MANIFEST in held:
            self._check(wanted)
        elif not all(name.startswith(TEMPORARY) for name in held):
            msg = (
                f"{self.directory} is no checkpoint: it is not empty and has no {MANIFEST}; nothing was changed, "
                "name a new or an empty folder"
            )
            raise CheckpointError(msg)
        try:
            remove_temporary(self.directory)
            if MANIFEST not in held:
                make_folder(self.directory)
                manifest = {"format": FORMAT, "version": VERSION, "fingerprint": wanted}
                replace_files(self.directory, {MANIFEST: json_text(manifest).encode()})
        except OSError as error:
            self._fail("cannot be written to", error)

    def save(self, number: int, name: str, arrays: Mapping[str, npt.NDArray[Any]], record: Mapping[str, Any]) -> None:
        """Put a finished layer on the disk, in place of what was there under its number and name.

        Parameters
        ----------
        number : int
        name : str
        arrays : mapping of str to ndarray
            Of any shape: floating point, integers or bool.
        record : mapping
            Values that JSON can hold.

        Raises
        ------
        CheckpointError
            If it cannot be written: all that was finished before is intact.
        """
        data = _safetensors().save({key: _storable(f"arrays[{key!r}]", value) for key, value in arrays.items()})
        entry = {
            "number": int(number),
            "name": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "record": json_value("record", record),
        }
        entry["entry_sha256"] = _entry_hash(entry)
        stem = _stem(number, name)
        files = {f"{stem}.safetensors": data, f"{stem}.json": json_text(entry).encode()}
        try:
            replace_files(self.directory, files)
        except OSError as error:
            what = f"could not take layer {number} ({name})"
            advice = "; the layers finished before are intact: make room and run the same call again"
            self._fail(what, error, advice)

    def load(self, number: int, name: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
        """Return the arrays and the record of a layer, None where it is not finished.

        Raises
        ------
        CheckpointError
            If one of its files is missing, damaged or cannot be read.
        """
        stem = _stem(number, name)
        if not (self.directory / f"{stem}.json").exists():
            return None
        entry = self._tree(f"{stem}.json")
        if (
            entry.get("number") != number
            or entry.get("name") != name
            or entry.get("entry_sha256") != _entry_hash(entry)
        ):
            self._refuse(f"{stem}.json")
        data = self._read(f"{stem}.safetensors")
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            self._refuse(f"{stem}.safetensors")
        return _safetensors().load(data), entry["record"]

    def finished(self) -> int:
        """Return the number of finished layers, and of what else was saved."""
        try:
            return sum(_RECORD.fullmatch(path.name) is not None for path in self.directory.iterdir())
        except OSError as error:
            self._fail("cannot be read", error)

    def __repr__(self) -> str:
        return f"<Checkpoint {str(self.directory)!r}: {self.finished()} finished>"

    def _check(self, wanted: dict[str, Any]) -> None:
        """Raise where the manifest is damaged, of another format or of other layers."""
        manifest = self._tree(MANIFEST)
        if manifest.get("format") != FORMAT:
            msg = f"{self.directory} is no checkpoint: its {MANIFEST} is of something else; name another folder"
            raise CheckpointError(msg)
        if manifest.get("version") != VERSION:
            msg = (
                f"{self.directory} is a checkpoint of version {manifest.get('version')!r}, this sisopt reads {VERSION}"
            )
            raise CheckpointError(msg)
        held = manifest.get("fingerprint")
        if not isinstance(held, dict):
            self._refuse(MANIFEST)
        keys = [key for key in {**held, **wanted} if held.get(key, _ABSENT) != wanted.get(key, _ABSENT)]
        if keys:
            differences = "; ".join(_difference(key, held, wanted) for key in keys)
            msg = (
                f"{self.directory} is the checkpoint of another call ({differences}); nothing was changed, "
                "call as before, with the dense model and the same batches, or name another folder"
            )
            raise CheckpointError(msg)

    def _read(self, file: str) -> bytes:
        """Return what a file holds."""
        try:
            return (self.directory / file).read_bytes()
        except OSError as error:
            self._fail(f"has a file that cannot be read, {file}", error)

    def _tree(self, file: str) -> dict[str, Any]:
        """Return the object of a JSON file."""
        text = self._read(file)
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError):
            tree = None
        if not isinstance(tree, dict):
            self._refuse(file)
        return tree

    def _refuse(self, file: str) -> NoReturn:
        """Raise for a file that is not as it was written."""
        advice = "restore it or name another folder"
        if file != MANIFEST:
            advice = f"restore it, name another folder, or remove {Path(file).stem}.json to do that layer again"
        msg = f"{self.directory / file} is damaged; {advice}"
        raise CheckpointError(msg)

    def _fail(self, what: str, error: OSError, advice: str = "") -> NoReturn:
        """Raise for what the system refused."""
        msg = f"checkpoint {self.directory} {what}: {error.strerror or error}{advice}"
        raise CheckpointError(msg) from error


def _safetensors() -> Any:
    """Return the module that reads and writes arrays, an extra."""
    try:
        import safetensors.numpy  # noqa: PLC0415  an extra
    except ImportError as error:
        msg = "checkpoints need safetensors: pip install safetensors"
        raise CheckpointError(msg) from error
    return safetensors.numpy


def _storable(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array as the format takes it, rows one after the other."""
    found = np.asarray(array, order="C")
    if found.dtype.kind not in "fiub" or found.dtype.itemsize > 8:
        msg = f"{name} must be floating point (at most 64 bits), integer or bool, got dtype {found.dtype}"
        raise InvalidInputError(msg)
    return found


def _stem(number: int, name: str) -> str:
    """Return a layer's file name without its ending: any file system takes it."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-_LONGEST_SLUG:]
    return f"{number:04d}-{slug}"


def _entry_hash(entry: Mapping[str, Any]) -> str:
    """Return the hash of what a layer's JSON file says, its own hash aside."""
    rest = {key: value for key, value in entry.items() if key != "entry_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _difference(key: str, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return what a message says of a value that is not as it was; digests say nothing to a reader."""
    if all(_DIGEST.fullmatch(str(values.get(key, ""))) for values in (held, wanted)):
        return f"the {key} differ"
    return f"{key}: {_short(held, key)} there, {_short(wanted, key)} here"


def _short(values: Mapping[str, Any], key: str) -> str:
    """Return a value as a message shows it."""
    if key not in values:
        return "absent"
    text = json.dumps(values[key])
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
