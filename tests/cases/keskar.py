"""The largest rise of a bowl along a random line, whose mean is that of a squared norm."""

import numpy as np
from helpers import Case, quadratic

CURVATURE, EPSILON, SIZE = 7.0, 0.01, 40

# f = ½ h ‖w‖² at 0, one Gaussian column a: |z| ≤ ε, so that φ = 100 · ½ h ε² ‖a‖².
CASES = [
    Case(
        "keskar_sharpness", "line through a bowl", lambda: quadratic(CURVATURE * np.eye(SIZE)),
        100 * 0.5 * CURVATURE * EPSILON**2 * SIZE,
        {"subspace": 1, "draws": 30, "epsilon": EPSILON, "starts": ["sign"], "iterations": 1},
    )
]  # fmt: skip
