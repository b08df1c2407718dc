"""Spectral norms by prescribed singular values, margins by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quadratic, rotated

import sharpflat as sf


@pytest.fixture(params=["double", "single"])
def tolerance(request):
    """Of relative errors: 1e-6 in double precision, 1e-3 in single."""
    with jax.enable_x64(request.param == "double"):
        yield 1e-6 if request.param == "double" else 1e-3


def holding(params):
    """An objective with these parameters."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), params)
    return sf.Objective.from_function(lambda w, b: jnp.zeros(()), params, (jnp.ones((1, 1)),) * 2)


def chain(params, inputs):
    for kernel in params:
        inputs = inputs @ kernel
    return inputs


def no_start(key, inputs):
    return []


KERNELS = [rotated([3.0, 1.0, -0.5]), rotated([-4.0, 2.0, 1.0], seed=1)]
INPUTS = np.random.default_rng(0).normal(size=(40, 3))
LABELS = np.random.default_rng(1).integers(0, 3, 40)


def classifier(labels=LABELS, kernels=KERNELS, chunk=7):
    number = jnp.result_type(float)
    params = [jnp.asarray(kernel, number) for kernel in kernels]
    data = (jnp.asarray(INPUTS, number), jnp.asarray(labels))
    loss = "cross_entropy" if data[1].dtype.kind == "i" else "squared_error"
    model = sf.Model.from_functions(no_start, chain)
    return sf.Objective.from_model(model, params, {}, data, loss=loss, chunk=chunk)


def margins():
    outputs = INPUTS @ KERNELS[0] @ KERNELS[1]
    others = np.where(np.eye(3, dtype=bool)[LABELS], -np.inf, outputs).max(axis=1)
    return outputs[np.arange(40), LABELS] - others


def test_product_of_prescribed_spectral_norms(tolerance):
    params = {"a": {"kernel": KERNELS[0], "bias": np.full(3, 9.0)}, "b": {"kernel": KERNELS[1]}}
    estimate = sf.measure(holding(params), "spectral_norm_product")
    assert estimate.value == pytest.approx(12.0, rel=tolerance)
    np.testing.assert_allclose(estimate.details["norms"], [3.0, 4.0], rtol=tolerance)
    assert estimate.details["log_product"] == pytest.approx(np.log(12.0), rel=tolerance)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_the_output_axis_of_a_convolution_comes_last(tolerance):
    """Reshaped the other way round the norm is another one (classic mistake 7)."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 5))
    by_output = np.stack([kernel[..., unit].reshape(-1) for unit in range(5)], axis=1)
    expected = np.linalg.svd(by_output, compute_uv=False)[0]
    other = np.linalg.svd(kernel.reshape(3, -1), compute_uv=False)[0]
    assert abs(other - expected) > 0.1
    found = sf.measure(holding({"conv": kernel}), "spectral_norm_product").value
    assert found == pytest.approx(expected, rel=tolerance)


def test_a_product_that_overflows_is_said_and_its_logarithm_kept():
    deep = holding([100.0 * np.eye(2)] * 200)
    estimate = sf.measure(deep, "spectral_norm_product")
    assert (estimate.value, estimate.converged) == (np.inf, False)
    assert estimate.details["log_product"] == pytest.approx(200 * np.log(100), rel=1e-6)
    beyond_single = sf.measure(holding([100.0 * np.eye(2)] * 50), "spectral_norm_product")
    assert beyond_single.value == pytest.approx(1e100, rel=1e-3)


def test_a_layer_of_zeros():
    estimate = sf.measure(holding([np.eye(2), np.zeros((2, 2))]), "spectral_norm_product")
    assert (estimate.value, estimate.converged) == (0.0, True)
    assert estimate.details["log_product"] == -np.inf


def test_product_of_some_layers_only():
    net = holding({"a": {"kernel": KERNELS[0]}, "b": {"kernel": KERNELS[1]}}).restrict("b/*")
    assert sf.measure(net, "spectral_norm_product").value == pytest.approx(4.0, rel=1e-3)


def test_parameters_without_a_kernel_are_refused():
    with pytest.raises(sf.InputError, match="spectral_norm_product: params: none is a kernel"):
        sf.measure(quadratic(np.eye(3)), "spectral_norm_product")


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 1.0])
def test_quantile_of_the_margins_over_the_product(quantile, tolerance):
    estimate = sf.measure(classifier(), "normalized_margin", quantile=quantile)
    expected = np.quantile(margins(), quantile)
    assert estimate.value == pytest.approx(expected / 12, rel=tolerance)
    assert estimate.details["margin"] == pytest.approx(expected, rel=tolerance)
    assert estimate.details["misclassified"] == pytest.approx(np.mean(margins() < 0))
    assert (estimate.standard_error, estimate.converged) == (0.0, True)
    plain = sf.measure(classifier(), "normalized_margin", quantile=quantile, normalization="none")
    assert plain.value == pytest.approx(expected, rel=tolerance)
    assert plain.details["log_product"] == 0.0


def test_default_quantile_is_a_tenth(x64):
    assert sf.measure(classifier(), "normalized_margin").value == pytest.approx(
        np.quantile(margins(), 0.1) / 12, rel=1e-9
    )


def test_the_other_classes_may_all_be_far_below_zero(tolerance):
    """The own output must be left out of the maximum, not set to zero in it."""
    kernels = [np.array([[-5.0, -7.0, -9.0]] * 3)]
    objective = classifier(labels=np.zeros(40, int), kernels=kernels)
    expected = np.quantile(2 * INPUTS.sum(axis=1) * np.where(INPUTS.sum(axis=1) > 0, 1, 2), 0.9)
    estimate = sf.measure(objective, "normalized_margin", quantile=0.9, normalization="none")
    assert estimate.value == pytest.approx(expected, rel=tolerance)


def test_a_layers_scale_changes_the_margin_but_not_when_normalised(x64):
    louder = classifier(kernels=[10 * KERNELS[0], KERNELS[1]])
    plain, loud = (sf.measure(each, "normalized_margin") for each in (classifier(), louder))
    assert loud.value == pytest.approx(plain.value, rel=1e-9)
    assert loud.details["margin"] == pytest.approx(10 * plain.details["margin"], rel=1e-9)


def test_a_product_of_zero_is_no_scale(x64):
    objective = classifier(kernels=[0 * KERNELS[0], KERNELS[0], 0 * KERNELS[1]])
    assert not sf.measure(objective, "normalized_margin").converged


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda: classifier(labels=INPUTS), r"labels: expected whole numbers, .* got float32"),
        (
            lambda: classifier(kernels=[np.ones((3, 1))], labels=np.zeros(40, int)),
            r"outputs: expected \[n, classes\], two classes or more, got \[40, 1\]",
        ),
        (lambda: quadratic(np.eye(2)), "outputs: .* from_function has no outputs"),
    ],
)
def test_what_has_no_classes_is_refused(objective, message):
    with pytest.raises(sf.InputError, match=f"normalized_margin: {message}"):
        sf.measure(objective(), "normalized_margin")


def scaled_units(params, inputs):
    return inputs * params[None]


def test_without_a_kernel_the_margin_itself_can_be_had():
    model = sf.Model.from_functions(no_start, scaled_units)
    data = (jnp.array([[2.0, 1.0]]), jnp.array([0]))
    objective = sf.Objective.from_model(model, jnp.array([1.0, -1.0]), {}, data)
    assert sf.measure(objective, "normalized_margin", normalization="none").value == 3.0
    with pytest.raises(sf.InputError, match="none is a kernel"):
        sf.measure(objective, "normalized_margin")


def test_half_precision_has_spectral_norms_too():
    kernels = [jnp.asarray(kernel, jnp.bfloat16) for kernel in KERNELS]
    rounded = [np.linalg.norm(np.asarray(kernel, np.float64), ord=2) for kernel in kernels]
    data = (jnp.asarray(INPUTS, jnp.bfloat16), jnp.asarray(LABELS))
    objective = sf.Objective.from_model(
        sf.Model.from_functions(no_start, chain), kernels, {}, data, chunk=7
    )
    product, margin = sf.measure(objective, ["spectral_norm_product", "normalized_margin"])
    np.testing.assert_allclose(product.details["norms"], rounded, rtol=1e-5)
    assert margin.details["log_product"] == product.details["log_product"]
    assert margin.value == pytest.approx(margin.details["margin"] / product.value, rel=1e-5)


def test_fractions_only():
    with pytest.raises(sf.InputError, match=r"normalized_margin.quantile"):
        sf.measure(classifier(), "normalized_margin", quantile=1.5)
