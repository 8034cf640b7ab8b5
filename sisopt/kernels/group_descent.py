"""Block coordinate descent on groups of weights that share one curvature matrix: the model step under group norms.

Rows (output neurons) that share a group form one component; components do not know of each other. Every group is a
list of parts, one for each of its rows, and every part a list of columns.

Notation, for one component with rows i and one group g with multiplier times its weight t and factors tau:

    R_i = c_i + s_i H d_i                                        gradient of the quadratic at v_i = w_i + d_i
    u_p = s_i H_pp v_p - R_p                                     what pulls part p of the group, the rest held fixed
    v_g = argmin 1/2 sum_p s_i v_p'H_pp v_p - u'v + tau'|v| + t ||v||_2

v_g = 0 where ||soft(u, tau)|| <= t. Else, where the curvature is diagonal or tau = 0, let e be the eigenvalues of the
s_i H_pp and b = soft(u, tau) in their basis; then v = b nu / (e nu + t) for the one nu > 0 with

    f(nu) = sum_k b_k**2 / (e_k nu + t)**2 = 1.

The function f**(-1/2) is a power mean of linear functions, hence concave: Newton's method on f**(-1/2) = 1 rises to
the root from any point left of it, and a step from any point right of it does not end right of it. All other groups
are minimised one weight at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz"}  # lets sums vectorise; NaN and infinities keep their meaning
DIAGONAL, ROTATED, STEPWISE = 0, 1, 2  # how a group is minimised; no part has two columns, eigenvectors, one by one
SWEEPS = 5  # of a round: over all working groups, then over those that are not zero
ROUNDING = 1e-13  # of a violation, relative to what cancels in it
LEAST_NEW = 8  # groups that may join the working set at once, where there are fewer in it
INNER_ACCURACY = 0.2  # of the worst violation, while groups that violate theirs still wait
EXTRAPOLATION_RIDGE = 1e-12
MAX_ROOT_STEPS = 60
ROOT_ACCURACY = 1e-15
STEPWISE_SWEEPS = 10
STEPWISE_ACCURACY = 1e-3  # of the first sweep's largest step


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _group_norm(b, e, t, size, start):
    """Return the root nu > 0 of sum_k b_k**2 / (e_k nu + t)**2 = 1, 0 if there is none; ``start`` is a guess."""
    total = 0.0
    largest = 0.0
    for k in range(size):
        total += b[k] * b[k]
        largest = max(largest, e[k])
    lowest = (np.sqrt(total) - t) / largest
    if not lowest > 0.0:
        return 0.0
    nu = max(start, lowest)
    for step in range(MAX_ROOT_STEPS):
        f = 0.0
        slope = 0.0
        for k in range(size):
            q = 1.0 / (e[k] * nu + t)
            square = b[k] * b[k] * q * q
            f += square
            slope += square * q * e[k]
        root = np.sqrt(f)
        change = (root - 1.0) * f / slope
        proposal = max(nu + change, lowest)
        done = abs(proposal - nu) <= ROOT_ACCURACY * nu or (step > 0 and proposal <= nu)
        nu = proposal
        if done:
            break
    return nu


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _weight_root(h, b, t, others):
    """Return the v > 0 with h v + t v / sqrt(v**2 + others) = b > 0, or 0 where there is none."""
    if others == 0.0:
        return max((b - t) / h, 0.0)
    v = max(b / (h + t / np.sqrt(others)), (b - t) / h)  # left of the root of a concave function
    for _ in range(MAX_ROOT_STEPS):
        square = v * v + others
        root = np.sqrt(square)
        change = (b - h * v - t * v / root) / (h + t * others / (square * root))
        if change <= ROOT_ACCURACY * v:
            break
        v += change
    return v


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _violation(g, R, V, place, group_parts, part_entries, part_row, columns, factors, t, multiplier):
    """Return the distance of -R_g from the subdifferential of tau'|v| + t ||v|| at v_g, and whether v_g is zero."""
    norm = 0.0
    for p in range(group_parts[g], group_parts[g + 1]):
        i = part_row[p]
        for k in range(part_entries[p], part_entries[p + 1]):
            v = V[i, place[columns[k]]]
            norm += v * v
    norm = np.sqrt(norm)
    pull = t / norm if norm > 0.0 else 0.0
    total = 0.0
    for p in range(group_parts[g], group_parts[g + 1]):
        i = part_row[p]
        for k in range(part_entries[p], part_entries[p + 1]):
            j = place[columns[k]]
            v = V[i, j]
            tau = multiplier * factors[k]
            if v > 0.0:
                d = R[i, j] + tau + pull * v
            elif v < 0.0:
                d = R[i, j] - tau + pull * v
            else:
                d = max(abs(R[i, j]) - tau, 0.0)
            total += d * d
    total = np.sqrt(total)
    return (total if norm > 0.0 else max(total - t, 0.0)), norm == 0.0


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _stepwise(
    g, H, scale, place, group_parts, part_entries, part_row, columns, factors, t, multiplier, u, b, new, norm
):
    """Lower the objective of one group weight by weight from ``new`` = v_g, known not to end at 0; return the sweeps.

    u and b = soft(u, tau) are the module's; b is overwritten.
    """
    first = part_entries[group_parts[g]]
    if norm == 0.0:  # leave zero along soft(u, tau), to the minimiser on that line
        total = 0.0
        curvature = 0.0
        for p in range(group_parts[g], group_parts[g + 1]):
            s = scale[part_row[p]]
            for k in range(part_entries[p], part_entries[p + 1]):
                row = H[place[columns[k]]]
                total += b[k - first] * b[k - first]
                for other in range(part_entries[p], part_entries[p + 1]):
                    curvature += s * b[k - first] * row[place[columns[other]]] * b[other - first]
        alpha = (total - t * np.sqrt(total)) / curvature if curvature > 0.0 else 0.0
        for k in range(part_entries[group_parts[g + 1]] - first):
            new[k] = alpha * b[k]
    # from here on b is the gradient of the quadratic, s H_pp v_p - u_p
    for p in range(group_parts[g], group_parts[g + 1]):
        s = scale[part_row[p]]
        for k in range(part_entries[p], part_entries[p + 1]):
            row = H[place[columns[k]]]
            total = 0.0
            for other in range(part_entries[p], part_entries[p + 1]):
                total += row[place[columns[other]]] * new[other - first]
            b[k - first] = s * total - u[k - first]
    largest = 0.0
    for sweep in range(STEPWISE_SWEEPS):
        square = 0.0
        for k in range(part_entries[group_parts[g + 1]] - first):
            square += new[k] * new[k]
        moved = 0.0
        for p in range(group_parts[g], group_parts[g + 1]):
            s = scale[part_row[p]]
            for k in range(part_entries[p], part_entries[p + 1]):
                row = H[place[columns[k]]]
                h = s * row[place[columns[k]]]
                old = new[k - first]
                pull = h * old - b[k - first]
                excess = abs(pull) - multiplier * factors[k]
                others = max(square - old * old, 0.0)
                value = _weight_root(h, excess, t, others) if excess > 0.0 else 0.0
                value = value if pull > 0.0 else -value
                delta = value - old
                if delta != 0.0:
                    new[k - first] = value
                    square = others + value * value
                    moved = max(moved, delta * delta * h)
                    for other in range(part_entries[p], part_entries[p + 1]):
                        b[other - first] += s * delta * row[place[columns[other]]]
        largest = max(largest, moved)
        if moved <= STEPWISE_ACCURACY * STEPWISE_ACCURACY * largest:
            return sweep + 1
    return STEPWISE_SWEEPS


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _update(
    g, H, R, V, scale, place, group_parts, part_entries, part_row, columns, factors, t, multiplier, kind,
    part_basis, basis_values, basis_vectors, values, vectors, u, b, e, new,
):  # fmt: skip
    """Minimise over one group in place, V and R both; return the floating-point work."""
    first = part_entries[group_parts[g]]
    size = part_entries[group_parts[g + 1]] - first
    norm = 0.0
    for p in range(group_parts[g], group_parts[g + 1]):
        i = part_row[p]
        for k in range(part_entries[p], part_entries[p + 1]):
            v = V[i, place[columns[k]]]
            new[k - first] = v
            norm += v * v
    norm = np.sqrt(norm)
    work = 4.0 * size

    total = 0.0
    for p in range(group_parts[g], group_parts[g + 1]):
        i = part_row[p]
        for k in range(part_entries[p], part_entries[p + 1]):
            j = place[columns[k]]
            pull = -R[i, j]
            if norm > 0.0:
                inner = 0.0
                for other in range(part_entries[p], part_entries[p + 1]):
                    inner += H[j, place[columns[other]]] * new[other - first]
                pull += scale[i] * inner
                work += 2.0 * (part_entries[p + 1] - part_entries[p])
            u[k - first] = pull
            excess = max(abs(pull) - multiplier * factors[k], 0.0)
            b[k - first] = excess if pull > 0.0 else -excess
            total += excess * excess
    if np.sqrt(total) <= t:
        if norm == 0.0:
            return work
        for k in range(size):
            new[k] = 0.0
    elif kind == STEPWISE:
        sweeps = _stepwise(
            g, H, scale, place, group_parts, part_entries, part_row, columns, factors, t, multiplier, u, b, new, norm
        )
        for p in range(group_parts[g], group_parts[g + 1]):
            work += 2.0 * (sweeps + 1) * (part_entries[p + 1] - part_entries[p]) ** 2
    elif kind == DIAGONAL:
        for p in range(group_parts[g], group_parts[g + 1]):
            k = part_entries[p]
            j = place[columns[k]]
            e[k - first] = scale[part_row[p]] * H[j, j]
        nu = _group_norm(b, e, t, size, norm)
        for k in range(size):
            new[k] = b[k] * nu / (e[k] * nu + t)
        work += 30.0 * size
    else:
        for p in range(group_parts[g], group_parts[g + 1]):
            n = part_entries[p + 1] - part_entries[p]
            at = part_entries[p] - first
            basis = part_basis[p]
            Q = basis_vectors[basis]
            for k in range(n):
                e[at + k] = scale[part_row[p]] * values[basis_values[basis] + k]
                b[at + k] = 0.0
            for a in range(n):
                for k in range(n):
                    b[at + k] += u[at + a] * vectors[Q + a * n + k]
            for k in range(n):
                if e[at + k] == 0.0:  # no curvature, so that what pulls there is rounding
                    b[at + k] = 0.0
            work += 4.0 * n * n
        nu = _group_norm(b, e, t, size, norm)
        for k in range(size):
            b[k] *= nu / (e[k] * nu + t)
        for p in range(group_parts[g], group_parts[g + 1]):
            n = part_entries[p + 1] - part_entries[p]
            at = part_entries[p] - first
            basis = part_basis[p]
            Q = basis_vectors[basis]
            for a in range(n):
                inner = 0.0
                for k in range(n):
                    inner += vectors[Q + a * n + k] * b[at + k]
                new[at + a] = inner
        work += 30.0 * size

    m = R.shape[1]
    for p in range(group_parts[g], group_parts[g + 1]):
        i = part_row[p]
        residual = R[i]
        for k in range(part_entries[p], part_entries[p + 1]):
            j = place[columns[k]]
            delta = new[k - first] - V[i, j]
            if delta != 0.0:
                V[i, j] = new[k - first]
                delta *= scale[i]
                row = H[j]
                for other in range(m):
                    residual[other] += delta * row[other]
                work += 2.0 * m
    return work


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _copy(source, target):
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _is_zero(g, V, place, group_parts, part_entries, part_row, columns):
    """Return whether all weights of a group are zero."""
    for p in range(group_parts[g], group_parts[g + 1]):
        i = part_row[p]
        for k in range(part_entries[p], part_entries[p + 1]):
            if V[i, place[columns[k]]] != 0.0:
                return False
    return True


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _penalty(g, V, place, group_parts, part_entries, part_row, columns, factors, t, multiplier):
    """Return tau'|v_g| + t ||v_g||."""
    total = 0.0
    square = 0.0
    for p in range(group_parts[g], group_parts[g + 1]):
        i = part_row[p]
        for k in range(part_entries[p], part_entries[p + 1]):
            v = V[i, place[columns[k]]]
            total += multiplier * factors[k] * abs(v)
            square += v * v
    return total + t * np.sqrt(square)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _extrapolate(
    past_V, past_R, V, R, working, place, group_parts, part_entries, part_row, columns, factors, group_weights,
    multiplier,
):  # fmt: skip
    """Anderson extrapolation of the last sweeps, kept where it lowers the objective.

    The combination of the iterates after each sweep whose last steps combine to the least norm; the gradient is affine
    in the weights, so that the same combination of gradients is its gradient.
    """
    depth = past_V.shape[0] - 1
    gram = np.empty((depth, depth))
    c = np.empty(depth)
    for a in range(depth):
        for b in range(a + 1):
            total = 0.0
            for i in range(V.shape[0]):
                for j in range(V.shape[1]):
                    total += (past_V[a + 1, i, j] - past_V[a, i, j]) * (past_V[b + 1, i, j] - past_V[b, i, j])
            gram[a, b] = total
            gram[b, a] = total
    trace = 0.0
    for a in range(depth):
        trace += gram[a, a]
    if trace == 0.0:
        return
    for a in range(depth):  # c = gram^-1 1, by elimination: the ridge keeps every pivot positive
        gram[a, a] += EXTRAPOLATION_RIDGE * trace
        c[a] = 1.0
    for a in range(depth):
        for b in range(a + 1, depth):
            factor = gram[b, a] / gram[a, a]
            c[b] -= factor * c[a]
            for other in range(a, depth):
                gram[b, other] -= factor * gram[a, other]
    total = 0.0
    for a in range(depth - 1, -1, -1):
        for b in range(a + 1, depth):
            c[a] -= gram[a, b] * c[b]
        c[a] /= gram[a, a]
        total += c[a]
    if not total > 0.0:
        return
    trial_V = np.zeros(V.shape)
    trial_R = np.zeros(R.shape)
    for a in range(depth):
        for i in range(V.shape[0]):
            for j in range(V.shape[1]):
                trial_V[i, j] += c[a] / total * past_V[a + 1, i, j]
                trial_R[i, j] += c[a] / total * past_R[a + 1, i, j]
    change = 0.0
    for i in range(V.shape[0]):
        for j in range(V.shape[1]):
            change += 0.5 * (trial_V[i, j] - V[i, j]) * (trial_R[i, j] + R[i, j])
    for g in working:
        t = multiplier * group_weights[g]
        change += _penalty(g, trial_V, place, group_parts, part_entries, part_row, columns, factors, t, multiplier)
        change -= _penalty(g, V, place, group_parts, part_entries, part_row, columns, factors, t, multiplier)
    if change < 0.0:
        _copy(trial_V, V)
        _copy(trial_R, R)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def group_descent(
    H, R, V, scale, first_group, last_group, group_parts, part_entries, part_row, columns, factors, group_weights,
    kinds, part_basis, basis_values, basis_vectors, values, vectors, multiplier, accuracy, max_rounds,
):  # fmt: skip
    """Minimise sum_i [c_i'd_i + 1/2 s_i d_i'H d_i] + multiplier g(W + D) over D for one component, in place.

    Primal:  as above, H symmetric positive semidefinite (m, m); V (k, m) goes from W to W + D and R (k, m) from C to
             the gradient there, C + s H D. Weights that are in no group stay as they are.
    Dual:    never formed: the outer certificate is, on the data.
    Stops when the largest violation of a group's optimality condition, Euclidean and divided by the root of the
    group's largest diagonal curvature, is at most ``accuracy`` times that at the start or rounding; or after
    ``max_rounds`` rounds, each of one sweep over the working groups, a few over those that are not zero, and an
    extrapolation. Working are the groups that are not zero and those that violate their condition most, chosen anew
    whenever they are solved among themselves.

    The component has the groups first_group to last_group. Group g has the parts group_parts[g] to group_parts[g + 1],
    part p the row part_row[p] of R and V and the entries part_entries[p] to part_entries[p + 1] of ``columns`` and
    ``factors``. ``kinds`` says how a group is minimised, part_basis which eigenvectors of H_pp a part uses: ``values``
    from basis_values and ``vectors`` (row-major squares) from basis_vectors on.
    Returns the floating-point work.
    """
    k, m = R.shape
    n_groups = last_group - first_group
    everywhere = np.arange(m)
    place = np.empty(m, np.intp)
    violations = np.empty(n_groups)
    working = np.empty(n_groups, np.intp)
    used = np.empty(m, np.intp)  # columns of the working groups
    unit = np.empty(n_groups)  # violations times these compare
    floor = 0.0  # what of a violation may be rounding
    largest = 0
    for g in range(first_group, last_group):
        curvature = 0.0
        size = multiplier * group_weights[g]
        for p in range(group_parts[g], group_parts[g + 1]):
            for entry in range(part_entries[p], part_entries[p + 1]):
                j = columns[entry]
                h = scale[part_row[p]] * H[j, j]
                curvature = max(curvature, h)
                size = max(size, h * abs(V[part_row[p], j]))
        unit[g - first_group] = 1.0 / np.sqrt(curvature)
        floor = max(floor, ROUNDING * size * unit[g - first_group])
        largest = max(largest, part_entries[group_parts[g + 1]] - part_entries[group_parts[g]])
    u, b, e, new = np.empty(largest), np.empty(largest), np.empty(largest), np.empty(largest)

    work = 0.0
    rounds = 0
    tolerance = -1.0
    while True:
        worst = 0.0
        worst_outside = 0.0
        n_outside = 0
        n_nonzero = 0
        for g in range(first_group, last_group):
            a = g - first_group
            t = multiplier * group_weights[g]
            violations[a], zero = _violation(
                g, R, V, everywhere, group_parts, part_entries, part_row, columns, factors, t, multiplier
            )
            violations[a] *= unit[a]
            worst = max(worst, violations[a])
            if not zero:
                violations[a] = np.inf
                n_nonzero += 1
            elif violations[a] > 0.0:
                worst_outside = max(worst_outside, violations[a])
                n_outside += 1
        work += 4.0 * R.size
        if tolerance < 0.0:
            tolerance = max(accuracy * worst, floor)
        if worst <= tolerance or rounds >= max_rounds:
            return work

        # work on the groups that are not zero and the worst of the others, on their own columns
        room = max(n_nonzero, LEAST_NEW)
        least = 0.0
        goal = tolerance
        if n_outside > room:
            goal = max(goal, INNER_ACCURACY * worst)
            least = worst_outside
            n_above = 0
            while n_above < room:
                least *= 0.95
                n_above = 0
                for a in range(n_groups):
                    n_above += violations[a] >= least
                n_above -= n_nonzero
        n_working = 0
        for j in range(m):
            place[j] = -1
        for g in range(first_group, last_group):
            if violations[g - first_group] > 0.0 and violations[g - first_group] >= least:
                working[n_working] = g
                n_working += 1
                for entry in range(part_entries[group_parts[g]], part_entries[group_parts[g + 1]]):
                    place[columns[entry]] = 0
        n = 0
        for j in range(m):
            if place[j] == 0:
                place[j] = n
                used[n] = j
                n += 1
        Hw = np.empty((n, n))
        Rw = np.empty((k, n))
        Vw = np.empty((k, n))
        for a in range(n):
            row = H[used[a]]
            for other in range(n):
                Hw[a, other] = row[used[other]]
        for i in range(k):
            for a in range(n):
                Rw[i, a] = R[i, used[a]]
                Vw[i, a] = V[i, used[a]]
        past_V = np.empty((SWEEPS + 1, k, n))
        past_R = np.empty((SWEEPS + 1, k, n))
        while rounds < max_rounds:
            rounds += 1
            _copy(Vw, past_V[0])
            for sweep in range(SWEEPS):
                for g in working[:n_working]:
                    if sweep > 0 and _is_zero(g, Vw, place, group_parts, part_entries, part_row, columns):
                        continue
                    t = multiplier * group_weights[g]
                    work += _update(
                        g, Hw, Rw, Vw, scale, place, group_parts, part_entries, part_row, columns, factors, t,
                        multiplier, kinds[g], part_basis, basis_values, basis_vectors, values, vectors, u, b, e, new,
                    )  # fmt: skip
                _copy(Vw, past_V[sweep + 1])
                _copy(Rw, past_R[sweep + 1])
                inner = 0.0
                for g in working[:n_working]:
                    t = multiplier * group_weights[g]
                    violation, _ = _violation(
                        g, Rw, Vw, place, group_parts, part_entries, part_row, columns, factors, t, multiplier
                    )
                    inner = max(inner, violation * unit[g - first_group])
                work += 4.0 * Rw.size
                if inner <= goal and k == 1:  # coupled rows finish the round: what follows builds on them
                    break
            if inner <= goal:
                break
            _extrapolate(
                past_V, past_R, Vw, Rw, working[:n_working], place, group_parts, part_entries, part_row, columns,
                factors, group_weights, multiplier,
            )  # fmt: skip
            work += SWEEPS * (SWEEPS + 9.0) * Rw.size
        for i in range(k):
            residual = R[i]
            for a in range(n):
                delta = scale[i] * (Vw[i, a] - V[i, used[a]])
                if delta != 0.0:
                    V[i, used[a]] = Vw[i, a]
                    row = H[used[a]]
                    for other in range(m):
                        residual[other] += delta * row[other]
                    work += 2.0 * m
