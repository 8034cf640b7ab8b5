"""sparsify_network() on a chain of matrices in plain numpy: order, data, counts, goals, checkpoints."""

from __future__ import annotations

import itertools
import logging
import re
import time
from functools import partial

import numpy as np
import pytest

from sisopt import Groups, InfeasibleBudgetError, InvalidInputError
from sisopt.activations import get_activation
from sisopt.errors import CheckpointError
from sisopt.network import LayerInfo, LayerReport, Program, sparsify_network

needs_checkpoints = pytest.mark.usefixtures("safetensors")


@pytest.fixture
def safetensors():
    pytest.importorskip("safetensors")


class Chain:
    """Layers x -> R(x W' + b), each of one matrix or of several that stand side by side; ``dense`` never changes."""

    def __init__(self, widths=(6, 9, 7, 4), activations=("relu", "tanh", "identity"), n_samples=60, n_parts=1, seed=0):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(n_samples, widths[0])).astype(np.float32)
        self.dense = [
            [
                (rng.normal(size=(n_out, n_in)).astype(np.float32), rng.normal(size=n_out).astype(np.float32))
                for _ in range(n_parts)
            ]
            for n_in, n_out in itertools.pairwise(widths)
        ]
        self.now = list(self.dense)
        self.activations = activations
        self.excluded = dict.fromkeys(range(len(self.dense)), "")
        self.unreached = set()
        self.events = []
        for layer in self.dense:
            for weight, bias in layer:
                weight.flags.writeable = bias.flags.writeable = False

    @property
    def layers(self):
        return [
            LayerInfo(f"fc{n}", "Matrix", parts[0][0].shape, sum(w.size for w, _ in parts), R, 10, self.excluded[n])
            for n, (parts, R) in enumerate(zip(self.dense, self.activations, strict=True))
        ]

    def fingerprint(self):
        return {"weights": str(sum(w.sum() for parts in self.dense for w, _ in parts)), "data": str(self.x.sum())}

    def inputs(self, number, layers):
        x = self.x
        for parts, R in zip(layers[:number], self.activations[:number], strict=True):
            x = get_activation(R).forward(np.mean([x @ w.T + b for w, b in parts], axis=0)).astype(np.float32)
        return x

    def visit(self, numbers, *, dense=False):
        self.events.append(("visit", tuple(numbers), dense))
        try:
            for number in numbers:
                x, x_dense = (self.inputs(number, layers) for layers in (self.dense if dense else self.now, self.dense))
                programs = [
                    Program(x, w, b, self.activations[number], None if dense else x_dense @ w.T + b)
                    for w, b in self.dense[number]
                ]
                self.events.append(number)
                yield number, [] if number in self.unreached else programs
        finally:
            self.events.append("closed")

    def put(self, number, parts):
        self.events.append(("put", number))
        assert len(parts) == len(self.dense[number])
        self.now[number] = list(parts)

    def kept(self):
        return [sum(np.count_nonzero(w) for w, _ in parts) for parts in self.now]


def bits(chain):
    return [[(w.tobytes(), b.tobytes()) for w, b in parts] for parts in chain.now]


def quick(inputs, weight, bias, goal):
    """Keep the largest weights by the inputs that they meet."""
    order = np.argsort(-np.abs(weight) * np.linalg.norm(inputs, axis=0), axis=None, kind="stable")
    sparse = np.zeros_like(weight)
    at = order[: round((1 - goal.sparsity) * weight.size)]
    sparse.flat[at] = weight.flat[at]
    return sparse, bias


def run(chain, **options):
    return sparsify_network(chain, **{"effort": "fast", "allocation": "uniform", **options})


def test_sequential_layers_are_put_before_the_next_is_asked_for():
    chain = Chain()
    run(chain, sparsity=0.5)
    wanted = [("visit", (0, 1, 2), False), 0, ("put", 0), 1, ("put", 1), 2, ("put", 2), "closed"]
    assert chain.events == wanted


def test_parallel_layers_are_put_in_the_end():
    chain = Chain()
    run(chain, sparsity=0.5, mode="parallel")
    wanted = [("visit", (0, 1, 2), True), 0, 1, 2, "closed", ("put", 0), ("put", 1), ("put", 2)]
    assert chain.events == wanted


@pytest.mark.parametrize("n_parts", [1, 3, 9])
@pytest.mark.parametrize("sparsity", [0.123, 0.777, 1.0])
def test_the_total_is_exact_and_every_layer_has_its_share(n_parts, sparsity):
    chain = Chain(n_parts=n_parts)
    report = run(chain, sparsity=sparsity)
    sizes = [layer.n_weights for layer in chain.layers]
    assert sum(chain.kept()) == report.n_kept == round((1 - sparsity) * sum(sizes))
    assert chain.kept() == [layer.n_kept for layer in report.layers]
    assert all(abs(kept - (1 - sparsity) * size) < 1 for kept, size in zip(chain.kept(), sizes, strict=True))


def test_reported_errors_are_those_of_the_outputs():
    chain = Chain()
    report = run(chain, sparsity=0.5)
    for number, layer in enumerate(report.layers):
        found, wanted = (chain.inputs(number + 1, layers) for layers in (chain.now, chain.dense))
        assert layer.output_error == pytest.approx(np.linalg.norm(found - wanted) / np.linalg.norm(wanted), rel=1e-4)
        assert layer.status == "done"
        assert layer.seconds > 0


def test_errors_of_several_matrices_are_of_one_output():
    chain = Chain(widths=(6, 9), activations=("relu",), n_parts=3)
    report = run(chain, sparsity=0.5)
    difference = reference = 0.0
    for (w, b), (w0, b0) in zip(chain.now[0], chain.dense[0], strict=True):
        y, y0 = np.maximum(chain.x @ w.T + b, 0), np.maximum(chain.x @ w0.T + b0, 0)
        difference, reference = difference + np.sum((y - y0) ** 2), reference + np.sum(y0**2)
    assert report.layers[0].output_error == pytest.approx(np.sqrt(difference / reference), rel=1e-4)


def test_excluded_and_unreached_layers_are_not_touched():
    chain = Chain()
    chain.excluded[0], chain.unreached = "not wanted", {1}
    report = run(chain, sparsity=0.5)
    assert chain.now[0] is chain.dense[0]
    assert chain.now[1] is chain.dense[1]
    assert [layer.status for layer in report.layers][:2] == [
        "kept dense: not wanted", "kept dense: no sample reaches it",
    ]  # fmt: skip
    assert [layer.included for layer in report.layers] == [False, False, True]
    assert chain.events[0] == ("visit", (1, 2), False)


@pytest.mark.parametrize(
    "options, allocation",
    [
        ({"sparsity": 0.5}, "error"),
        ({"sparsity": 0.5, "layer_solver": quick}, "uniform"),
        ({"sparsity": 0.5, "pattern": "per-row"}, "uniform"),
        ({"pattern": "2:4"}, "uniform"),
        ({"relative_error": 0.3}, "uniform"),
    ],
)
def test_zeros_go_where_they_cost_least_if_nothing_else_is_said(options, allocation):
    chain = Chain()
    report = run(chain, allocation=None, **options)
    assert report.options["allocation"] == allocation
    assert any(layer.curve for layer in report.layers) == (allocation == "error")
    if "sparsity" in options:
        assert report.n_kept == round(0.5 * report.n_weights)


def test_one_layer_needs_no_curve():
    chain = Chain()
    chain.excluded[1] = chain.excluded[2] = "not wanted"
    report = run(chain, sparsity=0.5, allocation="error")
    assert not any(layer.curve for layer in report.layers)
    assert [event for event in chain.events if isinstance(event, tuple) and event[0] == "visit"] == [
        ("visit", (0,), False)
    ]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_what_is_done_stays_when_a_solver_is_interrupted(mode, error):
    def solver(*args):
        if len(calls) == 2:
            raise error
        calls.append(args)
        return quick(*args)

    calls, chain = [], Chain()
    with pytest.raises(type(error)) as caught:
        run(chain, sparsity=0.5, layer_solver=solver, mode=mode)
    assert caught.value is error
    assert "closed" in chain.events
    assert chain.kept() == [27, 31, 28]
    assert chain.now[2] is chain.dense[2]


def test_programs_are_not_written_to_by_the_network():
    chain = Chain()
    before = [[(w.copy(), b.copy()) for w, b in parts] for parts in chain.dense]
    run(chain, sparsity=0.5, allocation="error")
    for parts, wanted in zip(chain.dense, before, strict=True):
        for (w, b), (w0, b0) in zip(parts, wanted, strict=True):
            np.testing.assert_array_equal(w, w0)
            np.testing.assert_array_equal(b, b0)


def test_goals_of_layers():
    chain = Chain()
    report = run(chain, goals={"fc0": 0.5, "fc1": {"sparsity": 0.25, "pattern": "per-row"}})
    assert chain.kept() == [27, round(0.75 * 63), 28]
    assert [layer.status for layer in report.layers] == ["done", "done", "kept dense"]


def test_a_network_that_no_sample_reaches_is_an_error():
    chain = Chain()
    chain.excluded[0], chain.unreached = "not wanted", {1, 2}
    for allocation in ("uniform", "error"):
        with pytest.raises(InvalidInputError, match="nothing can be made sparse: the batches give no layer"):
            run(chain, sparsity=0.5, allocation=allocation)
    assert chain.now == chain.dense


def test_numbers_that_are_not_finite_name_their_layer():
    chain = Chain()
    chain.x[3, 2] = np.inf
    with pytest.raises(InvalidInputError, match="inputs of layer 'fc0' hold NaN or infinite"):
        run(chain, sparsity=0.5)
    assert chain.now == chain.dense


def test_an_infeasible_budget_names_its_layer():
    chain = Chain()
    with pytest.raises(InfeasibleBudgetError, match="layer 'fc1': "):
        run(chain, relative_error=0.001, goals={"fc0": 0.9}, strict=True)
    report = run(Chain(), relative_error=0.001, goals={"fc0": 0.9})
    assert report.layers[1].status == "budget unattainable"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tol": 0.0}, "tol must be"),
        ({"tol": "small"}, "tol must be"),
        ({"n_threads": -1}, "n_threads must be"),
        ({"seed": 0.5}, "seed must be"),
        ({"goals": {"fc0": {"pattern": "2:4", "relative_error": 0.1}}}, "goes with a sparsity"),
        ({"goals": {"fc0": "2:x"}}, "pattern must be"),
        ({"goals": {"fc0": [1]}}, "must be a sparsity, a pattern, None"),
        ({"goals": {0: 0.5}}, r"goals must be a mapping of globs of layers' names to goals, .* got keys \[0\]"),
        ({"goals": "2:4"}, "goals must be a mapping"),
        ({"layer_solver": "magnitude"}, "layer_solver must be a function"),
        ({"checkpoint": 3}, "checkpoint must be the path of a folder, got 3"),
    ],
)
@needs_checkpoints
def test_refusals_come_before_a_checkpoint_is_made(options, match, tmp_path):
    with pytest.raises(InvalidInputError, match=match):
        sparsify_network(Chain(), **{"sparsity": 0.5, "checkpoint": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_the_log_tells_of_every_layer(caplog):
    with caplog.at_level(logging.INFO, "sisopt.network"):
        run(Chain(), sparsity=0.5)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["fc0", "fc1", "fc2"]
    assert "zeros, output error" in caplog.records[0].getMessage()
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "sisopt.network"):
        run(Chain(), sparsity=0.5, allocation="error")
    curve = caplog.records[0]
    assert curve.levelno == logging.DEBUG
    assert re.match(r"fc0: errors by sparsity (0\.\d{4}, ){6}0\.\d{4}, ", curve.getMessage())


# ---- checkpoints


def interrupted_after(n_layers):
    """Return a solver that is interrupted once it has solved some layers."""

    def solver(*args):
        solver.calls += 1
        if solver.calls > solver.most:
            raise KeyboardInterrupt
        return quick(*args)

    solver.calls, solver.most = 0, n_layers  # no part of what it is, unlike what it has caught
    return solver


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("allocation", ["uniform", "error"])
@pytest.mark.parametrize("n_done", [0, 1, 2, 3])
@needs_checkpoints
def test_an_interrupted_run_goes_on_to_the_same_bits(mode, allocation, n_done, tmp_path):
    options = {"sparsity": 0.5, "mode": mode, "allocation": allocation}
    whole = Chain()
    wanted = run(whole, layer_solver=interrupted_after(99), **options)
    if n_done < 3:
        with pytest.raises(KeyboardInterrupt):
            run(Chain(), layer_solver=interrupted_after(n_done), checkpoint=tmp_path, **options)
    else:
        run(Chain(), layer_solver=interrupted_after(3), checkpoint=tmp_path, **options)
    chain, solver = Chain(), interrupted_after(99)
    report = run(chain, layer_solver=solver, checkpoint=tmp_path, **options)
    assert solver.calls == 3 - n_done
    assert bits(chain) == bits(whole)
    assert [without_time(layer) for layer in report.layers] == [without_time(layer) for layer in wanted.layers]
    if n_done == 3:
        assert chain.events[0] == (("put", 0) if mode == "sequential" else ("visit", (), True))
        assert not any(isinstance(event, int) for event in chain.events)


def without_time(layer):
    return LayerReport.from_record(layer.to_record() | {"seconds": 0.0})


@pytest.mark.parametrize(
    ("chain", "options", "key"),
    [
        (Chain(seed=1), {}, "weights"),
        (Chain(n_samples=61), {}, "data"),
        (Chain(), {"sparsity": 0.6}, "sparsity: 0.5 there, 0.6 here"),
        (Chain(), {"seed": 1}, "seed: 0 there, 1 here"),
        (Chain(), {"mode": "parallel"}, "mode"),
        (Chain(), {"goals": {"fc1": None}}, "goals"),
        (Chain(), {"layer_solver": partial(quick)}, "code and state of layer_solver"),
        (Chain(), {"layer_solver": None}, "layer_solver"),
    ],
)
@needs_checkpoints
def test_a_checkpoint_of_another_call_is_refused_and_says_what_differs(chain, options, key, tmp_path):
    run(Chain(), sparsity=0.5, layer_solver=quick, checkpoint=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=key):
        run(chain, **{"sparsity": 0.5, "layer_solver": quick, "checkpoint": tmp_path, **options})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert chain.now == chain.dense


class Solver:
    """A solver that is an object: what it is called says nothing of where it lies in memory."""

    def __call__(self, *args):
        return quick(*args)


@needs_checkpoints
def test_solvers_that_are_objects_resume(tmp_path):
    run(Chain(), sparsity=0.5, layer_solver=Solver(), checkpoint=tmp_path)
    report = run(Chain(), sparsity=0.5, layer_solver=Solver(), checkpoint=tmp_path)
    assert report.options["layer_solver"] == f"{__name__}.Solver"


def test_a_layer_that_nothing_reaches_takes_none_of_the_zeros():
    chain = Chain()
    chain.unreached = {1}
    report = run(chain, sparsity=0.5, allocation="error")
    first, second, third = report.layers
    assert second.status == "kept dense: no sample reaches it" and not second.curve
    assert first.n_kept + third.n_kept == round(0.5 * (first.n_weights + third.n_weights))


def test_a_network_that_passes_over_a_layer_leaves_it_dense():
    chain = Chain()
    visit = chain.visit
    chain.visit = lambda numbers, **options: visit([n for n in numbers if n != 1], **options)
    for allocation in ("uniform", "error"):
        report = run(chain, sparsity=0.5, allocation=allocation)
        assert [layer.status[:10] for layer in report.layers] == ["done", "kept dense", "done"]


def test_another_solver_runs_alone_and_on_copies():
    chain = Chain(n_parts=9)
    running, before = [], bits(chain)

    def greedy(inputs, weight, bias, goal):
        running.append(1)
        assert len(running) == 1
        weight[:] = 0.0
        bias[:] = 0.0
        time.sleep(0.001)
        running.pop()
        return weight, bias

    report = run(chain, sparsity=0.5, layer_solver=greedy, mode="parallel", n_threads=4)
    assert all(layer.output_error > 0.1 for layer in report.layers)
    assert [[(w.tobytes(), b.tobytes()) for w, b in parts] for parts in chain.dense] == before


def test_errors_of_another_solver_name_the_layer():
    def broken(inputs, weight, bias, goal):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        run(Chain(), sparsity=0.5, layer_solver=broken)
    assert caught.value.__notes__ == ["This happened in layer 'fc0'."]


def scaled(inputs, weight, bias, goal, scale=1.0):
    sparse, bias = quick(inputs, weight, bias, goal)
    return scale * sparse, bias


class Scaled:
    def __init__(self, scale):
        self.scale, self.cache = scale, object()

    def solve(self, *args):
        return scaled(*args, scale=self.scale)

    __call__ = solve


def scaling(scale):
    return lambda *args: scaled(*args, scale=scale)


@needs_checkpoints
@pytest.mark.parametrize(
    "options",
    [
        [{"pattern": Groups(np.arange(54).reshape(9, 6) // k), "sparsity": 0.5} for k in (2, 3)],
        [{"layer_solver": partial(scaled, scale=s), "sparsity": 0.5} for s in (1.0, 2.0)],
        [{"layer_solver": Scaled(s), "sparsity": 0.5} for s in (1.0, 2.0)],
        [{"layer_solver": Scaled(s).solve, "sparsity": 0.5} for s in (1.0, 2.0)],
        [{"layer_solver": scaling(s), "sparsity": 0.5} for s in (1.0, 2.0)],
        [{"goals": dict(goals)} for goals in itertools.permutations([("fc0", 0.5), ("*", 0.25)])],
    ],
    ids=["groups", "partial", "object", "method", "closure", "order"],
)
def test_checkpoints_tell_groups_and_arguments_of_solvers_apart(tmp_path, options):
    chain = Chain()
    chain.excluded[1] = chain.excluded[2] = "not wanted"
    for _ in range(2):
        run(chain, checkpoint=tmp_path, **options[0])
    with pytest.raises(CheckpointError, match="of another call"):
        run(chain, checkpoint=tmp_path, **options[1])


@needs_checkpoints
def test_what_was_not_attained_is_an_error_in_a_strict_run_that_resumes(tmp_path):
    options = {"relative_error": 1e-9, "checkpoint": tmp_path}
    report = run(Chain(activations=("identity",) * 3, n_samples=200), **options)
    if not any("unattainable" in layer.status for layer in report.layers):
        pytest.skip("every layer kept its budget")
    with pytest.raises(InfeasibleBudgetError, match="cannot keep its budget"):
        run(Chain(activations=("identity",) * 3, n_samples=200), strict=True, **options)


def test_a_pattern_that_leaves_nothing_to_distribute_is_refused():
    with pytest.raises(InvalidInputError, match="leaves none to distribute"):
        run(Chain(), pattern="2:4", sparsity=0.5, allocation="error")


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_wrong_data_leave_what_waits_where_it_is(mode):
    chain = Chain()
    inputs = chain.inputs
    chain.inputs = lambda number, layers: inputs(number, layers) * (np.nan if number == 1 else 1.0)
    with pytest.raises(InvalidInputError, match="layer 'fc1' hold NaN"):
        run(chain, sparsity=0.5, mode=mode)
    if mode == "parallel":
        assert chain.now == chain.dense
