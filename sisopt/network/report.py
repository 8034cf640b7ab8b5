"""What became of a network: a line per layer, as text, as JSON, as a page and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from .atomic_files import file_to_write, replace_files
from .json_values import finite_or_none, json_text, json_value
from .report_page import page
from .report_plot import overview
from .report_records import COUNTS, ERRORS, checked_entry
from .report_table import layer_table

if TYPE_CHECKING:
    from .report_plot import Figure

FORMAT, VERSION = "sisopt network report", 1


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes
    ----------
    name, kind : str
        Its name in the network, and its type.
    shape : tuple of int
        Shape of its weight.
    activation : str
        The activation that it was made sparse with.
    n_weights, n_kept : int
        Its weights, and those that are not zero.
    flops : int
        Multiply-adds of the dense layer for one sample of the network; 0 where unknown.
    output_error, held_out_error, relative_error, gap : float or None
        As of `sisopt.SparseLayer` and its certified solution; None where not known or not finite.
    status : str
    seconds : float
    note : str
        What else there is to say.
    included : bool
        Whether it counts in the network's sparsity: not so a layer that was left out.
    curve : tuple of (float, float)
        Sparsities and the relative output errors that they would cost, as an allocation of zeros measured them.
    density : tuple of str
        Where its weights are, on a map of at most 48 x 48 places: a line per row, two hexadecimal digits per place, 00
        where all weights are zero, ff where none is.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import sparsify_model
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.ReLU()).eval()
    >>> report = sparsify_model(model, torch.randn(2, 100, 20), sparsity=0.8, effort="fast")
    >>> layer = report.layers[0]
    >>> layer.name, layer.kind, layer.activation, layer.n_kept, layer.sparsity
    ('0', 'Linear', 'relu', 40, 0.8)
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    activation: str
    n_weights: int
    n_kept: int
    flops: int
    output_error: float | None
    held_out_error: float | None
    relative_error: float | None
    gap: float | None
    status: str
    seconds: float
    note: str = ""
    included: bool = True
    curve: tuple[tuple[float, float], ...] = ()
    density: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Values as they come back from JSON: a run that resumes reports what one without a break does.
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        for name in ERRORS:
            object.__setattr__(self, name, finite_or_none(getattr(self, name)))
        for name in COUNTS:
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "curve", tuple((float(sparsity), float(error)) for sparsity, error in self.curve))
        object.__setattr__(self, "density", tuple(self.density))
        object.__setattr__(self, "seconds", finite_or_none(self.seconds) or 0.0)
        if not 0 <= self.n_kept <= self.n_weights:
            msg = f"layer {self.name!r} cannot keep {self.n_kept} of {self.n_weights} weights"
            raise InvalidInputError(msg)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return _zeros(self.n_kept, self.n_weights)

    @property
    def flops_kept(self) -> int:
        """Multiply-adds with weights that are not zero, for one sample of the network."""
        return (2 * self.flops * self.n_kept + self.n_weights) // (2 * self.n_weights) if self.n_weights else 0

    def to_record(self) -> dict[str, Any]:
        """Return the report as what JSON can hold."""
        record: dict[str, Any] = json_value("layer", asdict(self))
        return record

    @classmethod
    def from_record(cls, record: object) -> LayerReport:
        """Return the report that `to_record` gave the record of; entries that it does not know are left out.

        Raises
        ------
        InvalidInputError
            If something is missing or of another type.
        """
        if not isinstance(record, Mapping):
            msg = f"must be an object, got {type(record).__name__}"
            raise InvalidInputError(msg)
        values = {entry.name: checked_entry(record, entry.name) for entry in fields(cls)}
        return cls(**values)


@dataclass(frozen=True)
class NetworkReport:
    """What became of all layers of a network, in order of execution.

    Totals are over the layers that are included.

    Attributes
    ----------
    layers : tuple of LayerReport
    options : mapping
        What was asked for: strings, numbers, lists and mappings.
    model : object
        The sparse network, where an adapter gives it; no part of the JSON.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import sparsify_model
    >>> from sisopt.network import NetworkReport
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.ReLU()).eval()
    >>> report = sparsify_model(model, torch.randn(2, 100, 20), sparsity=0.8, effort="fast")
    >>> report.n_kept, report.n_weights, report.sparsity
    (40, 200, 0.8)
    >>> NetworkReport.from_json(report.to_json()) == report
    True
    """

    layers: tuple[LayerReport, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "options", json_value("options", self.options))

    @property
    def included(self) -> tuple[LayerReport, ...]:
        """The layers that count."""
        return tuple(layer for layer in self.layers if layer.included)

    @property
    def n_weights(self) -> int:
        """Weights of these."""
        return sum(layer.n_weights for layer in self.included)

    @property
    def n_kept(self) -> int:
        """Weights that are not zero."""
        return sum(layer.n_kept for layer in self.included)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over the layers that are included."""
        return _zeros(self.n_kept, self.n_weights)

    @property
    def flops(self) -> int:
        """Multiply-adds of the dense layers for one sample, as far as known."""
        return sum(layer.flops for layer in self.included)

    @property
    def flops_kept(self) -> int:
        """Multiply-adds with weights that are not zero, as far as known."""
        return sum(layer.flops_kept for layer in self.included)

    @property
    def seconds(self) -> float:
        """Seconds that the layers took."""
        return sum(layer.seconds for layer in self.included)

    def table(self) -> str:
        """Return a line of text per layer and one of totals; a column that no layer fills is left out."""
        n = len(self.layers)
        title = (
            f"NetworkReport: {n} layer{'s' * (n != 1)}, {self.n_kept:,} of {self.n_weights:,} weights kept, "
            f"{self.sparsity:.2%} zeros"
        )
        return "\n".join([title, *layer_table(self.layers, self)])

    def to_json(self) -> str:
        """Return the report as JSON text, with the sparsities and multiply-adds that follow from it."""
        layers = [
            layer.to_record() | {"sparsity": layer.sparsity, "flops_kept": layer.flops_kept} for layer in self.layers
        ]
        totals = {name: getattr(self, name) for name in (*COUNTS, "flops_kept", "sparsity", "seconds")}
        tree = {"format": FORMAT, "version": VERSION, "options": self.options, "totals": totals, "layers": layers}
        return json_text(tree)

    @classmethod
    def from_json(cls, text: str) -> NetworkReport:
        """Return the report that `to_json` wrote.

        Raises
        ------
        InvalidInputError
            If it is damaged, something else, or of a version that is not known.
        """
        try:
            tree = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            msg = f"a network report must be JSON text: {error}"
            raise InvalidInputError(msg) from None
        found = tree.get("format") if isinstance(tree, dict) else None
        if found != FORMAT:
            msg = f'a network report must say "format": "{FORMAT}", got {found!r}'
            raise InvalidInputError(msg)
        if tree.get("version") != VERSION:
            msg = f"this sisopt reads network reports of version {VERSION}, got {tree.get('version')!r}"
            raise InvalidInputError(msg)
        records, options = tree.get("layers"), tree.get("options")
        if not isinstance(records, list) or not isinstance(options, dict):
            msg = "a network report must have a list of layers and an object of options: it is damaged"
            raise InvalidInputError(msg)
        return cls(tuple(_layer(number, record) for number, record in enumerate(records)), options)

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """Return the report as one HTML page that needs no other file and no network.

        Parameters
        ----------
        path : path, optional
            Where to write the page too, in place of what is there.

        Returns
        -------
        str

        Raises
        ------
        InvalidInputError
            If the path is a folder, or names a file in none.
        ModuleNotFoundError
            If the extra ``report`` is not installed.
        """
        text = page(self)
        if path is not None:
            target = file_to_write(path)
            replace_files(target.parent, {target.name: text.encode()})
        return text

    def plot(self) -> Figure:
        """Return a picture: zeros of each layer, its errors, its certified gap, and how errors grow with zeros.

        Returns
        -------
        matplotlib.figure.Figure
            Apart from pyplot's: ``figure.savefig("report.png")`` writes it to a file.

        Raises
        ------
        ModuleNotFoundError
            If the extra ``plot`` is not installed.
        """
        return overview(self)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<NetworkReport: {len(self.layers)} layers, sparsity {self.sparsity:.4f}>"


def _zeros(n_kept: int, n_weights: int) -> float:
    """Return the fraction of zeros, 0 of nothing."""
    return 1.0 - n_kept / n_weights if n_weights else 0.0


def _layer(number: int, record: object) -> LayerReport:
    """Return a layer of a report; what is wrong with it comes with its number."""
    try:
        return LayerReport.from_record(record)
    except InvalidInputError as error:
        msg = f"layer {number} of the network report is damaged: {error}"
        raise InvalidInputError(msg) from None
