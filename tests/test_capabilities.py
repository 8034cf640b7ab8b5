"""What each method can do: the table, and that solve keeps to it."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest

from sisopt import ErrorBudget, LayerProblem, Penalized, Sparsity, UnsupportedError, solve
from sisopt.activations import MaxPool
from sisopt.capabilities import METHODS, check_capability
from sisopt.penalties import GroupL2

# Every row holds things asked for together. A method can do what is asked if no row that is part of it says "no".
TABLE = {
    #                                                   forward-backward  douglas-rachford  sis
    ("a multiplier",): ("yes", "yes", "no"),
    ("a sparsity",): ("yes", "no", "no"),
    ("a budget per layer",): ("yes", "yes", "yes"),
    ("budgets per batch",): ("yes", "yes", "yes"),
    ("budgets per neuron",): ("yes", "yes", "yes"),
    ("activation that acts entry by entry",): ("yes", "yes", "yes"),
    ("max-pooling",): ("yes", "yes", "yes"),
    ("activation that couples outputs",): ("yes", "yes", "yes"),
    ("activation that couples outputs", "budgets per neuron"): ("no", "no", "no"),
    ("activation that couples outputs", "entry_weights"): ("no", "no", "no"),
    ("activation that couples outputs", "tolerance"): ("no", "no", "no"),  # refused when the problem is posed
    ("l1",): ("yes", "yes", "yes"),
    ("groups inside neurons",): ("yes", "yes", "yes"),
    ("groups across neurons",): ("yes", "yes", "yes"),
    ("groups across neurons", "budgets per neuron"): ("no", "yes", "yes"),
    ("mask",): ("yes", "yes", "yes"),
    ("shift",): ("yes", "yes", "yes"),
    ("tolerance",): ("yes", "yes", "yes"),
    ("preactivations",): ("yes", "yes", "yes"),
    ("sample_weights",): ("yes", "yes", "yes"),
    ("entry_weights",): ("yes", "no", "yes"),
    ("fidelity",): ("yes", "no", "yes"),
    ("sums over samples",): ("yes", "no", "no"),
    ("sums over samples", "budgets per batch"): ("no", "no", "no"),
    ("stream of mini-batches",): ("no", "no", "yes"),
    ("stream of mini-batches", "max-pooling"): ("no", "no", "no"),
}
INSIDE, ACROSS = ("rows", "kernels"), ("columns", "blocks", "sparse-group")


def supported(method, asked):
    """Return whether the table says that a method can do what is asked, a set of its words."""
    column = METHODS.index(method)
    return all(row[column] == "yes" for things, row in TABLE.items() if asked.issuperset(things))


def asked_of(goal, activation, extras):
    """Return what a goal on a problem of the tests asks for, in the words of the table."""
    coupled = activation in ("softmax", "log_softmax", "sparsemax")
    words = {
        Penalized: "a multiplier",
        Sparsity: "a sparsity",
        ErrorBudget: f"a budget per {goal.per}" if getattr(goal, "per", None) == "layer" else None,
    }
    acts = "that couples outputs" if coupled else "that acts entry by entry"
    asked = {words[type(goal)] or f"budgets per {goal.per}"}
    asked.add("max-pooling" if activation == "max_pool" else f"activation {acts}")
    groups = "inside" if set(INSIDE) & set(extras) else "across" if set(ACROSS) & set(extras) else None
    asked.add("l1" if groups is None else f"groups {groups} neurons")
    asked.update(word for (word, *_) in TABLE if word in extras)
    return asked


def refusal(problem, goal, method):
    """Return why a method refuses, None if it does not."""
    try:
        check_capability(problem, goal, method)
    except UnsupportedError as error:
        return str(error)
    return None


def assert_refusal_helps(reason, method, asked):
    """The refusal is one sentence; what it says to use can do it, and it sends nobody to what cannot."""
    assert "\n" not in reason
    assert ". " not in reason
    assert not reason.endswith(".")
    able = [other for other in METHODS if supported(other, asked)]
    named = [other for other in METHODS if f"{other!r}" in reason and other != method]
    assert set(named) <= set(able)
    assert bool(named) == bool(able)
    if able:
        assert repr(method) in reason
        assert re.search(r"; use '", reason)


GOALS = {
    "multiplier": Penalized(1.0),
    "sparsity": Sparsity(0.5),
    "layer": ErrorBudget(relative_error=0.5),
    "batch": ErrorBudget(relative_error=0.5, per="batch", batch_size=30),
    "neuron": ErrorBudget(relative_error=0.5, per="neuron"),
}
EXTRAS = ("mask", "shift", "tolerance", "preactivations", "sample_weights", "entry_weights", "fidelity")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("extra", [None, *EXTRAS])
@pytest.mark.parametrize("activation", ["identity", "relu", "softmax", "log_softmax", "sparsemax", "max_pool"])
def test_methods_refuse_what_the_table_says_and_name_one_that_can(make_layer, activation, extra, method):
    if extra == "tolerance" and not supported(method, asked_of(GOALS["layer"], activation, (extra,))):
        with pytest.raises(
            UnsupportedError, match=f"tolerance must be 0 for activation '{activation}'.*; allow a larger"
        ):
            make_layer(activation, extras=(extra,))
        return
    for penalty, goal in product(["l1", *INSIDE, *ACROSS], GOALS.values()):
        extras = tuple(name for name in (penalty, extra) if name not in (None, "l1"))
        layer = make_layer(activation, extras=extras, n=20, n_in=6)
        asked = asked_of(goal, activation, extras)
        reason = refusal(layer.problem, goal, method)
        assert (reason is None) == supported(method, asked), (asked, reason)
        if reason is not None:
            assert_refusal_helps(reason, method, asked)
            with pytest.raises(UnsupportedError, match=re.escape(reason)):
                solve(layer.problem, goal, method=method)


def data(n=40, n_in=5, n_out=3):
    rng = np.random.default_rng(3)
    return rng.standard_normal((n, n_in)), rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("penalty", ["l1", *INSIDE[:1], *ACROSS[:1]])
def test_sums_over_samples_are_taken_as_the_table_says(penalty, goal, method):
    X, W, b = data()
    g = penalty if penalty == "l1" else GroupL2(penalty)
    problem = LayerProblem.from_gram(X.T @ X, weight=W, bias=b, n_samples=40, input_sum=X.sum(axis=0), penalty=g)
    asked = asked_of(GOALS[goal], "identity", (penalty,)) | {"sums over samples"}
    reason = refusal(problem, GOALS[goal], method)
    assert (reason is None) == supported(method, asked), reason
    if reason is None:
        assert solve(problem, GOALS[goal], method=method, tol=1e-3).gap <= 1e-3
    else:
        assert_refusal_helps(reason, method, asked)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("activation", ["relu", "softmax", "max_pool"])
def test_streams_of_mini_batches_are_taken_as_the_table_says(activation, goal, method):
    X, W, b = data()
    R = MaxPool(np.arange(10).reshape(5, 2)) if activation == "max_pool" else activation
    problem = LayerProblem.from_batches([(X[:25],), (X[25:],)], W, b, activation=R)
    wanted = ErrorBudget(relative_error=0.8, per="batch") if goal == "batch" else GOALS[goal]
    asked = asked_of(wanted, activation, ()) | {"stream of mini-batches"}
    reason = refusal(problem, wanted, method)
    assert (reason is None) == supported(method, asked), reason
    if reason is None:
        assert solve(problem, wanted, method=method, tol=0.1).gap <= 0.1
    else:
        assert_refusal_helps(reason, method, asked)


def test_the_table_has_one_answer_a_method():
    assert all(len(row) == len(METHODS) and set(row) <= {"yes", "no"} for row in TABLE.values())
