"""scikit-learn: the multi-layer perceptrons of `sklearn.neural_network` made sparse."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...activations import get_activation
from ...errors import InvalidInputError
from ...network import LayerInfo, NetworkReport, Program, sparsify_network

try:
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.utils.validation import check_array, check_is_fitted
except ModuleNotFoundError as error:
    msg = f'{error.name} is not installed: pip install "sisopt[sklearn]"'
    raise ModuleNotFoundError(msg, name=error.name) from error

Floats = npt.NDArray[Any]

# sklearn's names; of the positive outputs of a Poisson regression the logarithms are kept
NAMES = {"logistic": "sigmoid", "exp": "identity"}


def sparsify_mlp(estimator: MLPClassifier | MLPRegressor, X: npt.ArrayLike, **options: Any) -> NetworkReport:
    """Make a copy of a fitted multi-layer perceptron sparse, first layer to last, on calibration data.

    ``coefs_`` of the copy hold exact zeros, ``intercepts_`` are fitted to go with them. Every layer gets the inputs
    that come from the layers before it as they are by then, and the dense estimator's pre-activations for a target.
    The output layer counts with its activation: of a classifier, probabilities are kept.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        A fitted one. It stays as it is.
    X : array_like, shape (n_samples, n_features)
        Calibration data as ``estimator.predict`` takes them: in a pipeline, after the steps before. No labels.
    **options
        What is asked: ``sparsity=0.9`` and more, see `sisopt.network.sparsify_network`. Layers are called
        ``"coefs_.0"``, ``"coefs_.1"`` and so on.

    Returns
    -------
    NetworkReport
        Its ``model`` is the sparse estimator.

    Raises
    ------
    InvalidInputError
        If the estimator is none of these, or an argument is not what it should be.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sisopt.adapters.toolkits.scikit_learn import sparsify_mlp
    >>> X, y = load_digits(n_class=4, return_X_y=True)
    >>> dense = MLPClassifier((32,), random_state=0).fit(X, y)
    >>> report = sparsify_mlp(dense, X, sparsity=0.75)
    >>> report.sparsity
    0.75
    >>> report.model.score(X, y) > 0.95
    True
    """
    if not isinstance(estimator, MLPClassifier | MLPRegressor):
        msg = f"estimator must be a fitted MLPClassifier or MLPRegressor, got {type(estimator).__name__}"
        raise InvalidInputError(msg)
    check_is_fitted(estimator, "coefs_")
    data = check_array(X, dtype=(np.float64, np.float32))
    if data.shape[1] != estimator.n_features_in_:
        msg = f"X must have the {estimator.n_features_in_} features that the estimator was fitted to, got {data.shape}"
        raise InvalidInputError(msg)
    sparse = copy.deepcopy(estimator)
    return replace(sparsify_network(_Perceptron(estimator, sparse, data), **options), model=sparse)


class _Perceptron:
    """An estimator as `sisopt.network` sees networks: ``sparse`` is changed, ``dense`` stays as it is."""

    def __init__(self, dense: Any, sparse: Any, X: Floats) -> None:
        self._dense, self._sparse, self._X = dense, sparse, X
        names = [dense.activation] * (dense.n_layers_ - 2) + [dense.out_activation_]
        self._activations = [get_activation(NAMES.get(name, name)) for name in names]

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """See `Network`."""
        return [
            LayerInfo(f"coefs_.{i}", "dense", W.shape[::-1], W.size, R.name, W.size, n_zeros=int((W == 0).sum()))
            for i, (W, R) in enumerate(zip(self._dense.coefs_, self._activations, strict=True))
        ]

    def fingerprint(self) -> Mapping[str, str]:
        """See `Network`."""
        arrays = {"inputs": [self._X], "weights": [*self._dense.coefs_, *self._dense.intercepts_]}
        found = {n: hashlib.sha256(b"".join(a.tobytes() for a in each)).hexdigest() for n, each in arrays.items()}
        return {**found, "activations": repr(self._activations)}

    def visit(self, numbers: Sequence[int], *, dense: bool = False) -> Generator[tuple[int, list[Program]], None, None]:
        """See `Network`."""
        X = X_dense = self._X
        for i, R in enumerate(self._activations[: max(numbers, default=-1) + 1]):
            W, b = self._dense.coefs_[i], self._dense.intercepts_[i]
            Z = X_dense @ W + b
            if i in numbers:
                yield i, [Program(X_dense if dense else X, np.ascontiguousarray(W.T), b, R, None if dense else Z)]
            X, X_dense = R.forward(X @ self._sparse.coefs_[i] + self._sparse.intercepts_[i]), R.forward(Z)

    def put(self, number: int, parts: Sequence[tuple[Floats, Floats | None]]) -> None:
        """See `Network`."""
        ((weight, bias),) = parts
        self._sparse.coefs_[number], self._sparse.intercepts_[number] = np.ascontiguousarray(weight.T), bias
