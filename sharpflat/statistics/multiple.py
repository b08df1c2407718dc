"""Many hypotheses at once."""

from __future__ import annotations

from typing import Any

import numpy as np


def holm(p_values: Any) -> np.ndarray:
    """Holm's adjusted p values: those at most α can be rejected with a familywise error of α.

    p̃₍ᵢ₎ = max_{j ≤ i} min(1, (m − j + 1) p₍ⱼ₎), p₍₁₎ ≤ … ≤ p₍ₘ₎ in order.

    Args:
        p_values: `[m]` numbers between 0 and 1.

    Returns:
        The adjusted values, in the order given.

    Raises:
        ValueError: something that is not between 0 and 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p_values: expected numbers between 0 and 1, got {values.tolist()}")
    order = np.argsort(values)
    steps = np.minimum(1, values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted
