"""What `sparsify` returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from .solution import Solution


@dataclass(frozen=True)
class Stage:
    """A layer after one stage of `sparsify`: errors on the calibration data, seconds that the stage took.

    ``held_out_error`` is the output error on ``validation_inputs`` where these were given, else None. ``note`` says
    what a stage chose, or why it was skipped.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> inputs, weight = rng.normal(size=(200, 8)), rng.normal(size=(3, 8))
    >>> layer = sisopt.sparsify(inputs, weight, activation="relu", sparsity=0.5, effort="fast")
    >>> [(stage.name, stage.sparsity) for stage in layer.stages]
    [('swap', 0.5), ('refit', 0.5)]
    """

    name: str
    sparsity: float
    relative_error: float
    output_error: float
    held_out_error: float | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Settings:
    """How closely a layer holds on to the dense one: chosen on held-out samples where trials were run, see `sparsify`.

    Attributes
    ----------
    fidelity : float
        beta, the weight of the plain distance to the dense pre-activations.
    ridge : float
        The weight of the squared distance to the dense weights, in units of outputs: that of w_ij is
        ``ridge * ||x_j||**2``, somewhat more where an input hardly moves.
    slopes : bool
        Whether entries are weighted by R'(z)**2, the distance in outputs to first order.
    refit : bool
        Whether the values on the support are fitted once more.
    tolerance : float
        How far outputs may be from the dense layer's before that counts: what pre-activations may be are sets then,
        wide where the activation is flat.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> inputs, weight = rng.normal(size=(200, 8)), rng.normal(size=(3, 8))
    >>> layer = sisopt.sparsify(inputs, weight, activation="relu", sparsity=0.5, fidelity=0.2)
    >>> layer.settings.fidelity
    0.2
    """

    fidelity: float
    ridge: float
    slopes: bool = False
    refit: bool = True
    tolerance: float = 0.0

    def having(self, name: str, value: float) -> Settings:
        """Return the settings with another value of one."""
        changes: dict[str, Any] = {name: value}
        return replace(self, **changes)

    def __str__(self) -> str:
        words = [f"fidelity {self.fidelity:g}", f"ridge {self.ridge:g}"]
        words += ["slope weights"] * self.slopes + [f"tolerance {self.tolerance:.2g}"] * (self.tolerance > 0)
        return ", ".join(words)


@dataclass(frozen=True, eq=False)
class SparseLayer:
    """What `sparsify` returns.

    Attributes
    ----------
    weight : ndarray, shape (n_out, n_in)
        Sparse weights, exact zeros, in the dtype of the dense ones.
    bias : ndarray, shape (n_out,), or None
    sparsity : float
        Fraction of zeros.
    relative_error : float
        radius / epsilon_max on the calibration data: 0 is the dense layer, 1 the best constant one.
    output_error : float
        ||R(Z) - Y||_F / ||Y||_F on the calibration data, Y the dense layer's outputs; 0 if both vanish.
    held_out_error : float or None
        The same on samples that the weights were not fitted to: on ``validation_inputs``; without them an estimate,
        ``output_error`` times what the error of a trial run, on some of the neurons and four fifths of the samples,
        grew by on the last fifth; None where neither was made.
    convex : Solution or None
        The certified solution of the convex program that the layer was made from; None where none was solved.
    settings : Settings
        What the weights were made with.
    stages : tuple of Stage
        The layer after each stage.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> inputs, weight, bias = rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), rng.normal(size=3)
    >>> layer = sisopt.sparsify(inputs, weight, bias, activation="relu", sparsity=0.75)
    >>> layer.weight.shape, layer.bias.shape, int((layer.weight == 0).sum())
    ((3, 8), (3,), 18)
    >>> 0 < layer.output_error < 1
    True
    """

    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    sparsity: float
    relative_error: float
    output_error: float
    held_out_error: float | None
    convex: Solution | None
    settings: Settings
    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        n_out, n_in = self.weight.shape
        held = "" if self.held_out_error is None else f", held out {self.held_out_error:.4f}"
        lines = [
            f"SparseLayer {n_in} -> {n_out}: {self.sparsity:.2%} zeros, output error {self.output_error:.4f}{held}"
        ]
        if self.convex is not None:
            lines.append(f"  convex program: {self.convex.status.name}, certified gap {self.convex.gap:.1e}")
        lines.append(f"  settings: {self.settings}")
        lines.append(f"  {'stage':<12} {'zeros':>8} {'relative error':>15} {'output error':>13} {'seconds':>8}")
        lines += [
            f"  {s.name:<12} {s.sparsity:>8.2%} {s.relative_error:>15.4f} {s.output_error:>13.4f} {s.seconds:>8.2f}"
            + f"  {s.note}" * bool(s.note)
            for s in self.stages
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<SparseLayer {self.weight.shape}: sparsity {self.sparsity:.4f}, output_error {self.output_error:.4g}>"
