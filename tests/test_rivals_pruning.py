"""The rivals that prune a layer, on cases whose answer is known: counts, closed forms, optima found by trying all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import hadamard
from threadpoolctl import threadpool_limits

from bench.data import correlated_inputs
from bench.rivals import alps as alps_module
from bench.rivals.lasso import _fista
from bench.rivals.nettrim_sparsity import net_trim_to_sparsity
from bench.rivals.pattern import Pattern
from bench.rivals.pruning import MOST_INPUTS, PRUNERS, RELU_PRUNERS, SUPPORTS
from bench.rivals.quadratic import DAMPING, damped_gram, refit

REFITTING = ("magnitude + refit", "ALPS", "OBC", "lasso + refit")  # they end with least squares on the support


def layer(n=200, n_in=12, n_out=5, seed=0, dtype=np.float64):
    rng = np.random.default_rng([seed, n, n_in, n_out])
    return rng.standard_normal((n_out, n_in)).astype(dtype), correlated_inputs(n, n_in, 0.8, seed, dtype)


def error(weight, pruned, inputs):
    dense = inputs @ weight.T
    return float(np.linalg.norm(dense - inputs @ pruned.T) / np.linalg.norm(dense))


def squared(weight, pruned, gram):
    """Return what OBC and ALPS minimise: the squared error with the damping's ridge towards the dense weights."""
    change = pruned - weight
    return float(np.vdot(change @ gram, change))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small products are faster alone, by far where other processes run."""
    with threadpool_limits(1):
        yield


# What is kept


def test_a_share_of_the_whole_matrix_is_kept_and_ties_go_to_the_earlier_entry():
    scores = np.array([[1.0, 2.0, 2.0], [2.0, 0.0, 3.0]])
    assert Pattern(0.5).keep(scores).tolist() == [[False, True, True], [False, False, True]]
    assert Pattern(0.0).keep(scores).all()
    assert not Pattern(1.0).keep(scores).any()


def test_of_every_group_its_share_is_kept_and_of_the_remainder_too():
    scores = np.array([[4.0, 3.0, 2.0, 1.0, 5.0, 5.0, 5.0, 5.0, 1.0, 2.0, 3.0]])
    kept = Pattern(pattern=(1, 4)).keep(scores)
    assert np.flatnonzero(kept).tolist() == [0, 4, 10]  # of the last three inputs round(3 / 4) = 1
    assert Pattern(pattern=(1, 4)).count((7, 11)) == 21


@pytest.mark.parametrize("goal", [{}, {"sparsity": 0.5, "pattern": (2, 4)}, {"sparsity": 1.1}, {"pattern": (5, 4)}])
def test_a_pattern_that_says_nothing_clear_is_refused(goal):
    with pytest.raises(ValueError):
        Pattern(**goal)


# What holds for all of them


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.77, 0.9, 1.0])
@pytest.mark.parametrize("name", PRUNERS)
def test_the_count_is_exact(name, sparsity, dtype):
    W, X = layer(dtype=dtype)
    pruned = PRUNERS[name](W, X, sparsity=sparsity)
    assert pruned.shape == W.shape
    assert pruned.dtype == dtype
    assert np.count_nonzero(pruned) == round((1 - sparsity) * W.size)


@pytest.mark.parametrize("kept", [(2, 4), (1, 5), (0, 3), (4, 4)])
@pytest.mark.parametrize("name", PRUNERS)
def test_every_group_keeps_its_share(name, kept):
    W, X = layer(n_in=11)
    of_group = np.add.reduceat(PRUNERS[name](W, X, pattern=kept) != 0, np.arange(0, 11, kept[1]), axis=1)
    share = np.array([round(min(kept[1], 11 - start) * kept[0] / kept[1]) for start in range(0, 11, kept[1])])
    if name == "lasso":
        assert (of_group <= share).all()  # the lasso itself has zeros where it likes
    else:
        np.testing.assert_array_equal(of_group, np.broadcast_to(share, of_group.shape))


@pytest.mark.parametrize("name", PRUNERS)
def test_nothing_pruned_leaves_the_layer(name):
    W, X = layer()
    for goal in ({"sparsity": 0.0}, {"pattern": (4, 4)}):
        np.testing.assert_allclose(PRUNERS[name](W, X, **goal), W, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PRUNERS)
def test_the_arguments_are_not_written_to_and_the_same_layer_comes_back_twice(name):
    W, X = layer()
    W.flags.writeable = X.flags.writeable = False
    np.testing.assert_array_equal(PRUNERS[name](W, X, sparsity=0.6), PRUNERS[name](W, X, sparsity=0.6))


@pytest.mark.parametrize("name", PRUNERS)
def test_with_orthogonal_inputs_the_largest_weights_stay_as_they_are(name):
    X = hadamard(16).astype(np.float64)
    W = np.random.default_rng(0).standard_normal((1, 16))
    for goal in ({"sparsity": 0.75}, {"pattern": (1, 4)}):
        expected = W * Pattern(**goal).keep(np.abs(W))
        pruned = PRUNERS[name](W, X, **goal)
        if name == "lasso":  # it shrinks, and under a pattern may keep less
            assert set(np.flatnonzero(pruned)) <= set(np.flatnonzero(expected))
        else:
            np.testing.assert_allclose(pruned, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*REFITTING, "SparseGPT"])
def test_of_two_equal_inputs_one_takes_over_the_weight_of_the_other(name):
    X = np.repeat(np.random.default_rng(0).standard_normal((50, 1)), 2, axis=1)
    pruned = PRUNERS[name](np.array([[0.9, 1.1]]), X, sparsity=0.5)
    remaining = np.flatnonzero(pruned)
    alone = (0.9, 1.1)[remaining.item()]
    # The damped equation of the one that stays: (1 + DAMPING) w = 2 + DAMPING alone.
    np.testing.assert_allclose(pruned[0, remaining], (2.0 + DAMPING * alone) / (1.0 + DAMPING), rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in PRUNERS if name != "lasso"])  # shrunken, it is never exact
def test_weights_that_are_sparse_enough_already_stay(name):
    W, X = layer(n_in=16)
    W[:, 1::2] = 0.0
    for goal in ({"sparsity": 0.5}, {"sparsity": 0.3}, {"pattern": (2, 4)}):
        np.testing.assert_allclose(PRUNERS[name](W, X, **goal), W, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("fault", ["dead", "duplicate", "fewer samples", "all dead", "no weights", "huge", "tiny"])
def test_hard_inputs_do_no_harm(name, fault):
    W, X = layer()
    if fault == "dead":
        X[:, [2, 7]] = 0.0
    elif fault == "duplicate":
        X[:, 3] = X[:, 4]
    elif fault == "fewer samples":
        X = X[:5]
    elif fault == "all dead":
        X[:] = 0.0
    elif fault == "no weights":
        W[:] = 0.0
    else:
        X *= 1e5 if fault == "huge" else 1e-5
    for goal in ({"sparsity": 0.5}, {"pattern": (2, 4)}):
        pruned = PRUNERS[name](W, X, **goal)
        assert np.isfinite(pruned).all()
        assert np.count_nonzero(pruned) <= W.size // 2
        if fault not in ("all dead", "no weights"):
            assert error(W, pruned, X) < 0.8


@pytest.mark.parametrize("name", ["Wanda", "SparseGPT", "Boža ADMM"])
def test_the_weights_of_dead_inputs_go_first(name):
    W, X = layer()
    X[:, [2, 7, 8]] = 0.0
    W[:, [2, 7, 8]] *= 3.0
    pruned = PRUNERS[name](W, X, sparsity=0.25)
    assert not pruned[:, [2, 7, 8]].any()
    assert pruned[:, [0, 1, 3, 4, 5, 6, 9, 10, 11]].all()


@pytest.mark.parametrize("name", REFITTING)
def test_the_values_are_the_least_squares_ones_on_the_support(name):
    W, X = layer()
    pruned = PRUNERS[name](W, X, sparsity=0.5)
    np.testing.assert_allclose(pruned, refit(W, damped_gram(X), pruned != 0), rtol=1e-4, atol=1e-4)


def test_what_they_can_be_asked_for_is_said_of_every_one():
    assert set(SUPPORTS) == {*PRUNERS, *RELU_PRUNERS}
    assert set(MOST_INPUTS) <= set(SUPPORTS)


# One by one


def test_refit_solves_the_damped_normal_equations_of_each_row():
    gram = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    weight = np.array([[1.0, 4.0, 3.0], [1.0, 1.0, 1.0]])
    mask = np.array([[True, False, True], [False, False, False]])
    np.testing.assert_allclose(refit(weight, gram, mask), [[3.0, 0.0, 3.0], [0.0, 0.0, 0.0]])


def test_the_gram_matrix_is_damped_by_a_share_of_its_mean():
    np.testing.assert_allclose(damped_gram(np.diag([1.0, 3.0]), 0.1), np.diag([1.5, 9.5]))
    np.testing.assert_allclose(damped_gram(np.zeros((3, 2)), 0.1), np.diag([0.1, 0.1]))


def test_wanda_weighs_by_the_norms_and_gives_the_rest_to_the_next_largest():
    W = np.array([[1.0, 2.0, 3.0], [1.0, 5.0, 6.0]])
    X = np.diag([10.0, 2.0, 1.0])  # scores 10, 4, 3 and 10, 10, 6
    np.testing.assert_array_equal(PRUNERS["Wanda"](W, X, sparsity=0.5), [[1, 0, 0], [1, 5, 0]])


@pytest.mark.parametrize("goal", [{"sparsity": 0.6}, {"pattern": (2, 4)}])
def test_sparsegpt_with_a_diagonal_hessian_keeps_what_wandas_score_keeps(goal):
    rng = np.random.default_rng(0)
    W, X = rng.standard_normal((6, 20)), np.diag(rng.uniform(0.5, 2.0, 20))
    scores = np.abs(W) * np.sqrt(damped_gram(X).diagonal())
    np.testing.assert_allclose(PRUNERS["SparseGPT"](W, X, **goal), W * Pattern(**goal).keep(scores), atol=1e-12)


def test_sparsegpt_makes_up_for_a_weight_by_the_inputs_still_to_come_only():
    _, X = layer(n_in=2)
    gram = damped_gram(X)
    first = PRUNERS["SparseGPT"](np.array([[0.1, 1.0]]), X, sparsity=0.5)
    np.testing.assert_allclose(first, [[0.0, 1.0 + 0.1 * gram[0, 1] / gram[1, 1]]])
    second = PRUNERS["SparseGPT"](np.array([[1.0, 0.1]]), X, sparsity=0.5)
    np.testing.assert_allclose(second, [[1.0, 0.0]])


def test_sparsegpt_chooses_block_by_block_and_counts_exactly():
    W, X = layer(n=600, n_in=300, n_out=7)
    pruned = PRUNERS["SparseGPT"](W, X, sparsity=0.61)
    kept = np.add.reduceat(np.count_nonzero(pruned, axis=0), [0, 128, 256])
    assert kept.tolist() == [round(0.39 * 7 * 128), round(0.39 * 7 * 256) - round(0.39 * 7 * 128), kept[2]]
    assert kept.sum() == round(0.39 * 7 * 300)


def test_obc_removes_one_weight_by_the_closed_form():
    W, X = layer(n_out=1)
    inverse = np.linalg.inv(damped_gram(X))
    i = int(np.argmin(W[0] ** 2 / inverse.diagonal()))
    expected = W[0] - W[0, i] / inverse[i, i] * inverse[:, i]
    pruned = PRUNERS["OBC"](W, X, sparsity=1 / 12)
    np.testing.assert_allclose(pruned[0], expected, atol=1e-12)
    assert pruned[0, i] == 0


@pytest.mark.parametrize("goal", [{"sparsity": 0.6}, {"pattern": (1, 3)}])
@pytest.mark.parametrize("seed", range(5))
def test_obc_always_removes_what_raises_the_refitted_error_least(goal, seed):
    W, X = layer(n_in=9, n_out=1, seed=seed)
    gram = damped_gram(X)
    group = 3 if "pattern" in goal else 9
    quota = [2, 2, 2] if "pattern" in goal else [round(0.6 * 9)]
    mask = np.ones(9, bool)
    for _ in range(sum(quota)):
        errors = {}
        for i in np.flatnonzero(mask):
            if np.count_nonzero(~mask[i // group * group :][:group]) < quota[i // group]:
                mask[i] = False
                errors[i] = squared(W, refit(W, gram, mask[None]), gram)
                mask[i] = True
        mask[min(errors, key=errors.get)] = False
    np.testing.assert_array_equal(PRUNERS["OBC"](W, X, **goal)[0] != 0, mask)


def test_obc_takes_the_cheapest_weights_of_all_rows():
    W = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 0.5, 0.6, 0.7]])
    pruned = PRUNERS["OBC"](W, hadamard(4).astype(float), sparsity=0.5)
    np.testing.assert_allclose(pruned, [[0, 2, 3, 4], [5, 0, 0, 0]], atol=1e-12)


def least_error(W, gram, count):
    """Return the least squared error of all matrices with ``count`` weights, by all supports of each row."""
    n_in = W.shape[1]
    masks = (np.arange(2**n_in)[:, None] >> np.arange(n_in)) & 1 == 1
    total = np.zeros(1)  # of the rows so far, by the number of weights
    for w in W:
        of_row = np.full(n_in + 1, np.inf)
        for mask in masks:
            kept = np.count_nonzero(mask)
            of_row[kept] = min(of_row[kept], squared(w[None], refit(w[None], gram, mask[None]), gram))
        sums = np.full(len(total) + n_in, np.inf)
        for kept, value in enumerate(of_row):
            sums[kept : kept + len(total)] = np.minimum(sums[kept : kept + len(total)], total + value)
        total = sums
    return total[count]


def test_alps_and_obc_come_close_to_the_best_of_all_supports():
    ratios = {"ALPS": [], "OBC": [], "magnitude + refit": []}
    for seed in range(5):
        W, X = layer(n_in=6, n_out=10, seed=seed)
        gram = damped_gram(X)
        least = least_error(W, gram, 30)
        for name, of_name in ratios.items():
            of_name.append(squared(W, PRUNERS[name](W, X, sparsity=0.5), gram) / least)
    for name in ("ALPS", "OBC"):
        assert 1 - 1e-5 < min(ratios[name]) < 1 + 1e-5  # found once at least
        assert max(ratios[name]) < 1.05
    assert min(ratios["magnitude + refit"]) > 1.1


def rhos_of(monkeypatch, W, X, **goal):
    """Return the penalty parameters that ALPS goes through."""
    rhos, shifted_inverse = [], alps_module._shifted_inverse

    def spy(*arguments):
        at = shifted_inverse(*arguments)
        return lambda rho: (rhos.append(rho), at(rho))[1]

    monkeypatch.setattr(alps_module, "_shifted_inverse", spy)
    PRUNERS["ALPS"](W, X, **goal)
    return np.array(rhos)


def test_rho_grows_from_a_tenth_by_the_published_factors_until_the_support_rests(monkeypatch):
    rhos = rhos_of(monkeypatch, *layer(n=500, n_in=60, n_out=50), sparsity=0.7)
    factors = (rhos[1:] / rhos[:-1]).round(6)
    assert rhos[0] == 0.1
    assert factors[0] == 1.3
    assert set(factors) <= {1.3, 1.2, 1.1}
    assert factors.tolist() == sorted(factors, reverse=True)
    assert len(rhos) < 100  # 300 iterations


def test_rho_shrinks_while_the_support_does_not_move(monkeypatch):
    W, X = layer(n_in=16)
    W[:, 1::2] = 0.0
    rhos = rhos_of(monkeypatch, W, X, sparsity=0.5)
    np.testing.assert_allclose(rhos, 0.1 / 5.0 ** np.arange(len(rhos)))
    assert rhos[-1] < alps_module.LEAST_RHO <= rhos[-2]


def test_alps_solves_alike_by_the_inverse_and_by_its_factors():
    W, X = layer(n_in=30, n_out=20)
    eigenvalues, vectors = np.linalg.eigh(damped_gram(X))
    by_inverse, by_factors = (alps_module._shifted_inverse(eigenvalues, vectors, n)(2.0)(W) for n in (20, 3))
    np.testing.assert_allclose(by_inverse, by_factors, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(by_inverse @ (damped_gram(X) + 2.0 * np.eye(30)), W, rtol=1e-3, atol=1e-3)


def test_bozas_admm_ends_near_the_least_squares_values_with_its_damping():
    rng = np.random.default_rng(0)
    X = hadamard(16) + 0.1 * rng.standard_normal((16, 16))
    W = rng.standard_normal((4, 16))
    pruned = PRUNERS["Boža ADMM"](W, X, sparsity=0.5)
    scale = np.linalg.norm(X, axis=0)
    gram = X.T @ X + 0.1 * np.diag(scale**2)
    np.testing.assert_allclose(pruned, refit(W, gram, pruned != 0), atol=2e-3)


def test_fista_meets_the_optimality_conditions_of_the_lasso():
    W, X = layer(n=500)
    gram = X.T @ X
    target, multiplier = W @ gram, 40.0
    solution = _fista(W, gram, target, 1 / np.linalg.eigvalsh(gram)[-1], multiplier)
    gradient = solution @ gram - target
    present = solution != 0
    assert 0 < present.mean() < 1
    np.testing.assert_allclose(gradient[present], -multiplier * np.sign(solution[present]), rtol=0.01)
    assert np.abs(gradient[~present]).max() <= 1.01 * multiplier


def test_the_lasso_is_a_soft_threshold_where_inputs_are_orthogonal():
    W = np.array([[1.0, -3.0, 0.5, 2.0]])
    gram = 4.0 * np.eye(4)
    np.testing.assert_allclose(_fista(W, gram, W @ gram, 0.25, 4.0), [[0.0, -2.0, 0.0, 1.0]])


# Against each other, on Gaussian weights and correlated inputs


@pytest.fixture(scope="module")
def errors():
    X = correlated_inputs(1024, 128)
    W = np.random.default_rng(1).standard_normal((128, 128))
    goals = {
        "50 %": {"sparsity": 0.5},
        "70 %": {"sparsity": 0.7},
        "90 %": {"sparsity": 0.9},
        "2:4": {"pattern": (2, 4)},
    }
    return {label: {name: error(W, PRUNERS[name](W, X, **g), X) for name in PRUNERS} for label, g in goals.items()}


@pytest.mark.parametrize(
    ("label", "published"),
    [
        # Of the authors' programs on a 256 x 256 layer of this kind, 2048 samples.
        ("50 %", {"magnitude": 0.265, "Wanda": 0.266, "SparseGPT": 0.149, "ALPS": 0.0865, "OBC": 0.0863}),
        ("70 %", {"magnitude": 0.469, "Wanda": 0.469, "SparseGPT": 0.309, "ALPS": 0.1623, "OBC": 0.1624}),
        ("90 %", {"magnitude": 0.746, "Wanda": 0.746, "SparseGPT": 0.634, "ALPS": 0.3401, "OBC": 0.3408}),
        ("2:4", {"magnitude": 0.364, "Wanda": 0.364, "SparseGPT": 0.172, "ALPS": 0.120, "OBC": 0.121}),
        ("50 %", {"Boža ADMM": 0.096, "magnitude + refit": 0.108}),
        ("70 %", {"Boža ADMM": 0.184, "magnitude + refit": 0.233}),
        ("90 %", {"Boža ADMM": 0.381, "magnitude + refit": 0.540}),
        ("2:4", {"Boža ADMM": 0.129}),
    ],
)
def test_the_errors_are_those_of_the_authors_programs(errors, label, published):
    for name, expected in published.items():
        assert errors[label][name] == pytest.approx(expected, rel=0.05), name


def test_alps_and_obc_are_the_best_by_far(errors):
    for of_goal in errors.values():
        best = min(of_goal["ALPS"], of_goal["OBC"])
        assert max(of_goal["ALPS"], of_goal["OBC"]) < 1.02 * best
        assert all(value > 1.05 * best for name, value in of_goal.items() if name not in ("ALPS", "OBC"))


# Net-Trim


def test_net_trim_keeps_the_support_of_weights_that_are_sparse_already():
    rng = np.random.default_rng(0)
    X, W = rng.standard_normal((300, 8)), rng.choice([-1.0, 1.0], (4, 8))
    W[:, 1::2] = 0.0
    bias = np.linspace(-0.5, 0.5, 4)
    pruned, new_bias = net_trim_to_sparsity(W, X, bias, sparsity=0.5)
    np.testing.assert_array_equal(pruned != 0, W != 0)
    before, after = np.maximum(X @ W.T + bias, 0), np.maximum(X @ pruned.T + new_bias, 0)
    assert np.linalg.norm(after - before) < 0.5 * np.linalg.norm(before)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 1.0])
def test_net_trim_counts_exactly(sparsity, with_bias):
    W, X = layer(n_in=9, dtype=np.float32)
    bias = np.full(5, 0.1, np.float32) if with_bias else None
    pruned, new_bias = net_trim_to_sparsity(W, X, bias, sparsity=sparsity)
    assert np.count_nonzero(pruned) == round((1 - sparsity) * 45)
    assert pruned.dtype == np.float32
    assert (new_bias is None) == (bias is None)


def test_net_trim_leaves_the_largest_weights_of_a_layer_that_gives_nothing():
    W, X = layer(n_in=8, n_out=4)
    pruned, bias = net_trim_to_sparsity(W, X, np.full(4, -1e3), sparsity=0.5)
    np.testing.assert_array_equal(pruned, W * Pattern(0.5).keep(np.abs(W)))
    assert (bias == -1e3).all()
