"""Stochastic Lanczos quadrature: a spectrum from the tridiagonals of random starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sharpflat.curvature.krylov import Krylov


class Quadrature(NamedTuple):
    """Σ_j w_j f(λ_j) estimates tr f(H) / p, for each start: nodes and weights `[starts, steps]`.

    A space that ended early has nodes of weight zero at the end of its row.
    """

    nodes: np.ndarray
    weights: np.ndarray


def quadrature(space: Krylov, steps: int) -> Quadrature:
    """Gauss quadrature of the spectral measure of a space's start, `[1, steps]`.

    Source: Ubaru, Chen and Saad (2017), algorithm 1.
    """
    nodes, weights = np.zeros((2, 1, steps))
    m = space.grow(steps)
    values, rotation = np.linalg.eigh(space.tridiagonal(m))
    nodes[0, :m], weights[0, :m] = values, rotation[0] ** 2
    return Quadrature(nodes, weights)


def joined(rules: Sequence[Quadrature]) -> Quadrature:
    """The rules of several starts as one."""
    nodes, weights = (np.concatenate(parts) for parts in zip(*rules, strict=True))
    return Quadrature(nodes, weights)


def smoothed(rule: Quadrature, grid: np.ndarray, width: float) -> np.ndarray:
    """Density on `grid` of each start, every node a Gaussian of `width`: `[starts, grid]`."""
    distance = (grid[None, None, :] - rule.nodes[:, :, None]) / width
    bumps = np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))
    return np.sum(rule.weights[:, :, None] * bumps, axis=1)
