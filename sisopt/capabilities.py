"""What each method can do: one table, one sentence where it cannot."""

from __future__ import annotations

from .errors import UnsupportedError
from .goals import ErrorBudget, Goal, Penalized, Sparsity
from .problem import LayerProblem

METHODS = ("forward-backward", "douglas-rachford", "sis")


def check_capability(problem: LayerProblem, goal: Goal, method: str) -> None:
    """Raise UnsupportedError, saying which method can, where ``method`` cannot pursue the goal on the problem."""
    reason = _refusal(problem, goal, method)
    if reason is not None:
        raise UnsupportedError(reason)


def _refusal(problem: LayerProblem, goal: Goal, method: str) -> str | None:
    activation, per = problem.activation, goal.per if isinstance(goal, ErrorBudget) else "layer"
    if activation.couples_outputs:
        if problem.entry_weights is not None:
            return (
                f"activation {activation.name!r} couples the outputs of a sample, so that no method takes "
                "entry_weights with it; use sample_weights"
            )
        if per == "neuron":
            return (
                f"activation {activation.name!r} couples the outputs of a sample, so that no method takes budgets "
                "per='neuron' with it; use per='layer' or per='batch'"
            )
    if problem.inputs is None and per == "batch" and problem.batches is None:
        return "budgets per='batch' need the inputs, and this problem holds sums over all samples; use LayerProblem"
    return {"forward-backward": _fast, "douglas-rachford": _splitting, "sis": _sis}[method](problem, goal, per)


def _fast(problem: LayerProblem, goal: Goal, per: str) -> str | None:
    if problem.batches is not None:
        return "method 'forward-backward' needs the inputs in memory or in a numpy.memmap; use 'sis' for streams"
    if per == "neuron" and problem.structure.couples_rows:
        return (
            "method 'forward-backward' takes budgets per='neuron' only where no group of weights spans neurons; "
            "use 'douglas-rachford'"
        )
    return None


def _splitting(problem: LayerProblem, goal: Goal, per: str) -> str | None:
    if problem.inputs is None:
        held = "sums over samples" if problem.statistics is not None else "a stream of mini-batches"
        other = "'forward-backward'" if problem.statistics is not None else "'sis'"
        return f"method 'douglas-rachford' needs the inputs in memory, and this problem holds {held}; use {other}"
    if isinstance(goal, Sparsity):
        return "method 'douglas-rachford' takes budgets and multipliers, no Sparsity; use 'forward-backward'"
    for name, used in (("fidelity", problem.fidelity > 0), ("entry_weights", problem.entry_weights is not None)):
        if used:
            return (
                f"method 'douglas-rachford' takes no {name}: its projections want plain distances; "
                "use 'forward-backward' or 'sis'"
            )
    return None


def _sis(problem: LayerProblem, goal: Goal, per: str) -> str | None:
    if not isinstance(goal, ErrorBudget):
        wanted = "Penalized" if isinstance(goal, Penalized) else "Sparsity"
        return f"method 'sis' takes error budgets, no {wanted}; use 'forward-backward'"
    if problem.inputs is None and problem.batches is None:
        return "method 'sis' goes through the inputs, and this problem holds sums over them; use 'forward-backward'"
    return None
