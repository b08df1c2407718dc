"""Free energies and posterior mean losses of quadratics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from helpers import Case, rotated

import sharpflat as sf

SPECTRUM = np.array([10.0, 5.0, 2.0, 1.0, 0.5, 0.1, 0.0])
EXAMPLES = 50
N_BETA = EXAMPLES / math.log(EXAMPLES)
AWAY = np.array([0.3, -0.2, 0.1, 0.5, 0.0, 1.0, 0.4])


def bowl(weights=None):
    """½ wᵀHw + 0.5 at 0 or elsewhere; the examples are there to be counted."""
    matrix = jnp.asarray(rotated(SPECTRUM), jnp.result_type(float))
    data = jnp.ones((EXAMPLES, 1)), jnp.ones(EXAMPLES)
    start = jnp.zeros(len(SPECTRUM)) if weights is None else jnp.asarray(weights, matrix.dtype)
    return sf.Objective.from_function(lambda w, batch: 0.5 * w @ matrix @ w + 0.5, start, data)


def noisy_bowl(w, batch):
    """½ ‖w‖² of the first four parameters, and a slope that each example has for itself."""
    return 0.5 * jnp.sum(w[:4] ** 2) + jnp.mean(batch.inputs @ w[:4])


class Normalized(nn.Module):
    """A bowl in fifty weights, with batch norm's averages that nothing depends on."""

    @nn.compact
    def __call__(self, inputs, *, use_running_average):
        weights = self.param("weights", nn.initializers.zeros, (50,))
        norm = nn.BatchNorm(use_running_average=use_running_average)
        return 0.5 * jnp.sum(weights**2) + 0 * norm(inputs)[:, 0]


def own_output(outputs, labels):
    return outputs


def with_statistics(policy):
    """The same minimum under every policy, gradients included."""
    inputs = jnp.linspace(-1, 1, EXAMPLES)[:, None]
    model = sf.Model.of(Normalized())
    params, state = model.init(jax.random.key(0), inputs)
    data = inputs, jnp.zeros(EXAMPLES)
    return sf.Objective.from_model(model, params, state, data, own_output, batch_norm=policy)


def free_energy(t, sigma, weights):
    """t L + ½ Σ log(1 + t h σ²) − ½ t² σ² gᵀ (1 + t σ² H)⁻¹ g."""
    matrix = rotated(SPECTRUM)
    gradient, precision = matrix @ weights, np.eye(len(matrix)) + t * sigma**2 * matrix
    shift = t**2 * sigma**2 * gradient @ np.linalg.solve(precision, gradient)
    loss = 0.5 * weights @ matrix @ weights + 0.5
    return t * loss + 0.5 * np.linalg.slogdet(precision)[1] - 0.5 * shift


def coefficient(localization):
    pulls = N_BETA * SPECTRUM
    return 0.5 * np.sum(pulls / (pulls + localization))


LLC = {"chains": 32, "localization": 20.0, "burn_in": 50, "steps": 60}
ENTROPY = {"chains": 32, "sigma": 0.7, "burn_in": 30}

CASES = [
    Case("local_learning_coefficient", "quadratic", bowl, coefficient(20.0), LLC),
    Case(
        "local_learning_coefficient", "large steps", bowl, coefficient(20.0),
        {**LLC, "step_size": 3.0 / (N_BETA * SPECTRUM[0] + 20.0)},
    ),
    Case(
        "local_entropy", "quadratic", bowl, free_energy(1.0, 0.7, np.zeros(len(SPECTRUM))), ENTROPY
    ),
    Case(
        "local_entropy", "away from the minimum", lambda: bowl(AWAY), free_energy(2.0, 0.7, AWAY),
        {**ENTROPY, "inverse_temperature": 2.0},
    ),
]  # fmt: skip
