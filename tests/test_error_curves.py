"""Errors by sparsity, as an allocation of zeros gets them."""

import numpy as np
import pytest

from sisopt.network import LayerInfo, Program
from sisopt.network.curves import FINE, LEVELS, _between, error_curves
from sisopt.network.solving import Solving


def powers(a, b):
    """Errors whose logarithm is straight over that of the odds of a zero."""
    return lambda s: np.minimum(a * (s / (1.0 - s)) ** b, 1.0)


@pytest.mark.parametrize("a, b", [(0.02, 0.7), (1e-3, 1.5), (1e-6, 2.5)])
def test_straight_lines_of_logarithms_are_met_everywhere(a, b):
    error = powers(a, b)
    np.testing.assert_allclose(_between(error(np.asarray(LEVELS))), error(FINE), rtol=1e-9)


def test_curves_rise_and_stay_below_one_whatever_the_noise():
    noisy = np.array([0.2, 0.1, 0.0, 0.4, 0.3, 1.0, 1.0])
    curve = _between(noisy)
    assert np.all(np.diff(curve) >= 0)
    assert 0 < curve[0] and curve[-1] <= 1
    assert np.all(_between(np.zeros(len(LEVELS))) < 1e-9)


class Toy:
    """Two linear layers: the outputs of one hang on few weights, those of the other on all."""

    def __init__(self, n_samples=300):
        rng = np.random.default_rng(0)
        few = np.zeros((8, 12))
        few[np.arange(8), np.arange(8)] = 1.0
        self.weights = [few + 1e-3 * rng.normal(size=few.shape), rng.normal(size=few.shape)]
        self.inputs = rng.normal(size=(n_samples, 12))
        self.layers = [LayerInfo(f"layer{i}", "Linear", (8, 12), 96, "identity", flops=96 * (i + 1)) for i in (0, 1)]
        self.visits = []

    def visit(self, numbers, *, dense=False):
        self.visits.append((tuple(numbers), dense))
        for number in numbers:
            yield number, [Program(self.inputs, self.weights[number], None, "identity", None)]


def test_a_layer_that_hangs_on_few_weights_has_the_lower_curve():
    toy = Toy()
    easy, hard = error_curves(toy, [0, 1], False, Solving("fast"), None, False).values()
    assert toy.visits == [((0, 1), True)]  # the dense network's inputs
    middle = (FINE > 0.2) & (FINE < 0.9)
    assert np.all(easy.errors[middle] < 0.1 * hard.errors[middle])
    assert easy.cost_per_weight == hard.cost_per_weight == 1.0


def test_flops_are_the_cost_of_a_weight():
    costs = [
        curve.cost_per_weight for curve in error_curves(Toy(), [0, 1], True, Solving("fast"), None, False).values()
    ]
    assert costs == [1.0, 2.0]


@pytest.mark.parametrize("n_samples", [1, 3])
def test_few_samples_give_a_curve(n_samples):
    curves = error_curves(Toy(n_samples), [0, 1], False, Solving("fast"), None, False)
    assert list(curves) == [0, 1]
    assert all(np.isfinite(curve.errors).all() for curve in curves.values())


def test_a_layer_that_no_sample_reaches_has_none():
    assert error_curves(Toy(0), [0, 1], False, Solving("fast"), None, False) == {}


class Grouped(Toy):
    """One layer of many programs: in some, one weight does it all."""

    def __init__(self, n_easy, n_programs=20):
        super().__init__()
        rng = np.random.default_rng(1)
        self.layers = [LayerInfo("grouped", "Conv2d", (n_programs, 1, 12), 12 * n_programs, "identity")]
        self.programs = []
        for i in range(n_programs):
            weight = np.eye(1, 12) if i < n_easy else rng.normal(size=(1, 12))
            self.programs.append(Program(rng.normal(size=(300, 12)), weight, None, "identity", None))

    def visit(self, numbers, *, dense=False):
        yield 0, self.programs


def test_a_layer_of_many_programs_is_judged_by_several_of_them():
    hard, mixed, easy = (error_curves(Grouped(n), [0], False, Solving("fast"), None, False)[0] for n in (0, 10, 20))
    middle = (FINE > 0.55) & (FINE < 0.8)
    assert np.all(easy.errors[middle] < 0.1 * mixed.errors[middle])
    assert np.all(mixed.errors[middle] < 0.8 * hard.errors[middle])
