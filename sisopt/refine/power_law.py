"""How many weights have a given radius, guessed from two counts whose radii are known."""

from __future__ import annotations

import math

MOST_AHEAD = math.log(1e6)  # of a prediction: the logarithm of its count over the last


def predicted_count(seen: list[tuple[int, float]], radius: float) -> int:
    """Return the count at which a power law through the last two (count, radius) has the radius, inverse from one."""
    (count, value), power = seen[-1], -1.0
    if value <= 0.0 or radius <= 0.0:
        return 0
    if len(seen) == 2 and seen[0][0] != count and seen[0][1] > 0.0:
        slope = math.log(value / seen[0][1]) / math.log(count / seen[0][0])
        power = slope if slope < 0.0 else power
    return round(count * math.exp(min(math.log(radius / value) / power, MOST_AHEAD)))
