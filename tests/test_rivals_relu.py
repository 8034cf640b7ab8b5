"""The datafit that skglm is given for a ReLU layer: by hand, and against our solver."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("skglm")
with_skglm_relu = pytest.importorskip("bench.rivals.with_skglm_relu")

# The fit errs by 2 and -1 where the outputs are positive, by 3 and not at all where they are zero.
X = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0], [5.0, 7.0]])
Y = np.array([1.0, 2.0, 0.0, 0.0])
FIT = np.array([3.0, 1.0, 3.0, -4.0])


@pytest.fixture
def datafit():
    return with_skglm_relu.ReluDistance()


def test_the_value_is_half_the_mean_squared_error_where_there_is_one(datafit):
    assert datafit.value(Y, np.zeros(2), FIT) == (4 + 1 + 9) / 8


def test_the_gradient_is_the_mean_of_errors_times_inputs(datafit):
    gradient = [datafit.gradient_scalar(X, Y, np.zeros(2), FIT, j) for j in range(2)]
    assert gradient == [(2 + 0 + 9) / 4, (4 + 1 + 3) / 4]
    assert datafit.intercept_update_step(Y, FIT) == (2 - 1 + 3) / 4


def test_the_lipschitz_constants_are_mean_squares_of_the_inputs(datafit):
    np.testing.assert_array_equal(datafit.get_lipschitz(X, Y), [35 / 4, 55 / 4])


def test_the_gradient_is_the_derivative_of_the_value(datafit):
    step = 1e-6
    for j in range(2):
        ahead, behind = (datafit.value(Y, np.zeros(2), FIT + sign * step * X[:, j]) for sign in (1, -1))
        assert datafit.gradient_scalar(X, Y, np.zeros(2), FIT, j) == pytest.approx((ahead - behind) / (2 * step))


def test_skglm_and_our_solver_find_the_same_layer():
    import sisopt

    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((200, 6))
    problem = sisopt.LayerProblem(inputs, rng.standard_normal((3, 6)), np.full(3, 0.2), activation="relu")
    solution = sisopt.solve(problem, sisopt.Penalized(20.0), tol=1e-9)
    outputs = np.maximum(problem.preactivations, 0.0)
    weight, bias = with_skglm_relu.solve_rows(inputs, outputs, 20.0, 1e-9)
    assert 0 < np.count_nonzero(weight) < weight.size
    np.testing.assert_allclose(weight, solution.weight, atol=1e-4)
    np.testing.assert_allclose(bias, solution.bias, atol=1e-4)
