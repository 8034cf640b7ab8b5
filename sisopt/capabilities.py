"""What each method can do: one table, one sentence where it cannot."""

from __future__ import annotations

from .activations import MaxPool, Sparsemax
from .errors import UnsupportedError
from .goals import ErrorBudget, Goal, Penalized, Sparsity
from .problem import LayerProblem

METHODS = ("forward-backward", "douglas-rachford", "sis")


def check_capability(problem: LayerProblem, goal: Goal, method: str) -> None:
    """Raise UnsupportedError where ``method`` cannot pursue the goal on the problem; the message says which can.

    Examples
    --------
    >>> import sisopt
    >>> from sisopt.capabilities import check_capability
    >>> problem = sisopt.LayerProblem([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0]])
    >>> check_capability(problem, sisopt.Sparsity(0.5), "forward-backward")
    >>> check_capability(problem, sisopt.Sparsity(0.5), "sis")
    Traceback (most recent call last):
        ...
    sisopt.errors.UnsupportedError: method 'sis' takes error budgets, no Sparsity; use 'forward-backward'
    """
    reason = _refusal(problem, goal, method)
    if reason is None:
        return
    able = [repr(other) for other in METHODS if _refusal(problem, goal, other) is None]
    msg = f"{reason}; {'use ' + ' or '.join(able) if able else 'no method can'}"
    raise UnsupportedError(msg)


def _refusal(problem: LayerProblem, goal: Goal, method: str) -> str | None:
    """Return why the method cannot, None where it can."""
    activation, per = problem.activation, goal.per if isinstance(goal, ErrorBudget) else "layer"
    if activation.couples_outputs:
        for what, asked in (("entry_weights", problem.entry_weights is not None), ("per='neuron'", per == "neuron")):
            if asked:
                return f"{what} cannot go with activation {activation.name!r}, which couples the outputs of a sample"
    if problem.batches is not None and isinstance(activation, MaxPool):
        return f"activation {activation.name!r} couples samples, which a stream of mini-batches may separate"
    if problem.batches is not None and isinstance(activation, Sparsemax):
        return f"activation {activation.name!r} needs all samples at once, and this problem is a stream of mini-batches"
    if problem.statistics is not None and per == "batch":
        return "budgets per='batch' need the inputs, and this problem holds sums over all samples"
    return {"forward-backward": _fast, "douglas-rachford": _splitting, "sis": _sis}[method](problem, goal, per)


def _fast(problem: LayerProblem, goal: Goal, per: str) -> str | None:
    if problem.batches is not None:
        return "method 'forward-backward' needs the inputs as an array, and this problem holds a stream of mini-batches"
    if per == "neuron" and problem.structure.couples_rows:
        return "method 'forward-backward' takes budgets per='neuron' only where no group of weights spans neurons"
    return None


def _splitting(problem: LayerProblem, goal: Goal, per: str) -> str | None:
    if problem.inputs is None:
        held = "sums over samples" if problem.statistics is not None else "a stream of mini-batches"
        return f"method 'douglas-rachford' needs the inputs as an array, and this problem holds {held}"
    if isinstance(goal, Sparsity):
        return "method 'douglas-rachford' takes budgets and multipliers, no Sparsity"
    for name, used in (("fidelity", problem.fidelity > 0), ("entry_weights", problem.entry_weights is not None)):
        if used:
            return f"method 'douglas-rachford' takes no {name}: its projections want plain distances"
    return None


def _sis(problem: LayerProblem, goal: Goal, per: str) -> str | None:
    if not isinstance(goal, ErrorBudget):
        return f"method 'sis' takes error budgets, no {'Penalized' if isinstance(goal, Penalized) else 'Sparsity'}"
    if problem.inputs is None and problem.batches is None:
        return "method 'sis' goes through the inputs, and this problem holds sums over them"
    return None
