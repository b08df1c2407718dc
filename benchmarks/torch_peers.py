"""PyHessian and hessian-eigenthings in a process of their own, which `peers.Peers` starts.

    torch/bin/pip install torch numpy pyhessian==0.1 hessian-eigenthings==1.0.0a5

Each line on stdin is a JSON object, `{"do": name, argument: value, ...}`; each is answered by one
line of JSON on stdout. Arrays travel as .npz files. Nothing of JAX or sharpflat is imported here.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import math
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import hessian_eigenthings as eigenthings
import numpy as np
import pyhessian
import torch
from torch import nn

THREADS = 2
MODULE = sys.modules["pyhessian.hessian"]  # the package hides its module behind the class
BATCH_NORM_EPSILON = 1e-3
criterion = nn.functional.cross_entropy


class Reached(Exception):
    """Raised out of PyHessian's loop, which knows no true error."""


class Peers:
    """One network on one batch of data, under both libraries."""

    def load(self, path: str) -> dict[str, Any]:
        """Take network and data from an .npz; what versions are at work."""
        arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
        self.data = arrays.pop("inputs"), arrays.pop("labels").long()
        self.network = perceptron(arrays).eval()
        packages = ("torch", "pyhessian", "hessian-eigenthings")
        return {name: importlib.metadata.version(name) for name in packages}

    def hessian(self) -> pyhessian.hessian:
        """PyHessian's object: the forward pass and the differentiable gradient are made here.

        It adds to the gradients it finds: a second object on the same network would otherwise be
        that of twice the loss.
        """
        self.network.zero_grad()
        return pyhessian.hessian(self.network, criterion, data=self.data, cuda=False)

    def operator(self, kind: str = "hessian") -> eigenthings.CurvatureOperator:
        """hessian-eigenthings' operator: `hessian`, `ggn`, or `fisher` (the empirical one).

        It makes forward and backward pass anew for every product, and leaves the network in the
        mode it finds it in: under `train` each product would move batch norm's averages.
        """
        of_output = eigenthings.supervised_loss_of_output(criterion)
        makers = {
            "hessian": (eigenthings.HessianOperator, eigenthings.supervised_loss(criterion)),
            "ggn": (eigenthings.GGNOperator, eigenthings.supervised_forward, of_output),
            "fisher": (
                eigenthings.EmpiricalFisherOperator,
                eigenthings.supervised_per_sample_loss(criterion),
            ),
        }
        maker, *functions = makers[kind]
        return maker(self.network, [self.data], *functions)

    def cast(self, dtype: torch.dtype) -> None:
        self.network.to(dtype)
        self.data = self.data[0].to(dtype), self.data[1]

    def evaluate(self, vector: str, into: str, fisher: bool) -> dict[str, float]:
        """Loss and gradient norm; into an .npz the products of every operator with a vector.

        They are computed in the vector's own precision.
        """
        given = np.load(vector)
        self.cast(torch.from_numpy(given[given.files[0]]).dtype)
        hessian = self.hessian()
        names = [name for name, _ in self.network.named_parameters()]
        parts = [torch.from_numpy(given[name]) for name in names]
        flat = torch.cat([part.reshape(-1) for part in parts])
        product = MODULE.hessian_vector_product(hessian.gradsH, hessian.params, parts)
        products = {
            "PyHessian": torch.cat([part.reshape(-1) for part in product]),
            "hessian-eigenthings": self.operator().matvec(flat),
            "Gauss–Newton": self.operator("ggn").matvec(flat),
        }
        if fisher:
            products["empirical Fisher"] = self.operator("fisher").matvec(flat)
        arrays = {}
        for kind, image in products.items():
            pieces = eigenthings.vector_to_params(
                image.detach(), dict(self.network.named_parameters())
            )
            arrays |= {f"{kind}/{name}": piece.numpy() for name, piece in pieces.items()}
        np.savez(into, **arrays)
        gradient = torch.cat([part.detach().reshape(-1) for part in hessian.gradsH])
        loss = criterion(self.network(self.data[0]), self.data[1])
        self.cast(torch.float32)
        return {"loss": loss.item(), "gradient": gradient.norm().item()}

    def products(self, count: int, library: str) -> dict[str, float]:
        """Seconds a product: the object made once, then `count` products, each normalised."""
        began = time.perf_counter()
        if library == "PyHessian":
            hessian = self.hessian()
            vector = MODULE.normalization([torch.randn_like(p) for p in hessian.params])
            for _ in range(count):
                image = MODULE.hessian_vector_product(hessian.gradsH, hessian.params, vector)
                vector = MODULE.normalization(image)
        else:
            operator = self.operator()
            vector = torch.randn(operator.size)
            for _ in range(count):
                image = operator.matvec(vector)
                vector = image / image.norm()
        return {"seconds": (time.perf_counter() - began) / count}

    def power(self, seed: int, reference: float, error: float, iterations: int) -> dict[str, Any]:
        """PyHessian's power iteration until its value stays within `error` of `reference`.

        It goes on to a tenth of that error, to see that the value stays; only the time until it
        is within counts.
        """

        def stop(value: float) -> None:
            if abs(value / reference - 1) <= error / 10:
                raise Reached

        torch.manual_seed(seed)
        began = time.perf_counter()
        with watched(stop) as values, contextlib.suppress(Reached):
            self.hessian().eigenvalues(maxIter=iterations, tol=0)
        seen = [(when - began, abs(value / reference - 1)) for when, value in values]
        products = max((i for i, (_, apart) in enumerate(seen, 1) if apart > error), default=0)
        reached = products < len(seen)
        products = min(products + 1, len(seen))
        seconds, apart = seen[products - 1]
        return {"seconds": seconds, "products": products, "error": apart, "reached": reached}

    def eigenvalue(
        self, call: str, seed: int, operator: str = "hessian", **arguments: Any
    ) -> dict[str, Any]:
        """The top eigenvalue by one of the libraries' own functions, with what it says of it."""
        torch.manual_seed(seed)
        began = time.perf_counter()
        if call == "pyhessian.eigenvalues":
            with watched(lambda value: None) as values:
                value = self.hessian().eigenvalues(**arguments)[0][0]
            found = {"value": value, "products": len(values), "converged": None}
        elif call == "power_iteration_one":
            value, _, _, products, converged = eigenthings.power_iteration_one(
                self.operator(operator), seed=seed, **arguments
            )
            found = {"value": value, "products": products, "converged": converged}
        else:
            result = eigenthings.lanczos(self.operator(operator), seed=seed, **arguments)
            found = {
                "value": result.eigenvalues[0].item(),
                "products": result.iterations,
                "converged": bool(result.converged[0]),
            }
        return {**found, "seconds": time.perf_counter() - began}

    def probes(self, count: int, seed: int) -> dict[str, Any]:
        """PyHessian's Hutchinson probes, exactly `count` of them; the gradient's time apart."""
        torch.manual_seed(seed)
        began = time.perf_counter()
        hessian = self.hessian()
        made = time.perf_counter()
        values = hessian.trace(maxIter=count, tol=-math.inf)
        seconds = (time.perf_counter() - made) / count
        return {"values": values, "gradient": made - began, "seconds": seconds}

    def default_trace(self, seed: int) -> dict[str, Any]:
        """PyHessian's trace as its own rule stops it."""
        torch.manual_seed(seed)
        began = time.perf_counter()
        values = self.hessian().trace()
        return {
            "value": float(np.mean(values)),
            "products": len(values),
            "seconds": time.perf_counter() - began,
        }

    def trace(self, seed: int, operator: str = "hessian", **arguments: Any) -> dict[str, float]:
        """hessian-eigenthings' trace: Hutch++ unless told otherwise."""
        began = time.perf_counter()
        result = eigenthings.trace(self.operator(operator), seed=seed, **arguments)
        seconds = time.perf_counter() - began
        return {"value": result.estimate, "standard_error": result.stderr, "seconds": seconds}

    def density(self, runs: int, steps: int, seed: int) -> dict[str, float]:
        """hessian-eigenthings' spectral density."""
        began = time.perf_counter()
        result = eigenthings.spectral_density(
            self.operator(), num_runs=runs, lanczos_steps=steps, seed=seed
        )
        seconds = time.perf_counter() - began
        mean = (result.raw_eigenvalues * result.raw_weights).nansum(dim=1).mean().item()
        return {"seconds": seconds, "mean": mean, "top": result.raw_eigenvalues.max().item()}

    def dense(self, operator: str) -> dict[str, float]:
        """Top eigenvalue and trace of the whole matrix, in float64; for small networks."""
        self.cast(torch.float64)
        matvec, size = self.operator(operator).matvec, self.operator(operator).size
        matrix = torch.stack([matvec(row) for row in torch.eye(size).double()])
        self.cast(torch.float32)
        top = torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]
        return {"top": top.item(), "trace": matrix.trace().item()}


@contextlib.contextmanager
def watched(on_value: Callable[[float], None]) -> Iterator[list[tuple[float, float]]]:
    """Time and value of each Rayleigh quotient that PyHessian's power iteration makes."""
    values: list[tuple[float, float]] = []
    original = MODULE.group_product

    def spy(xs: Any, ys: Any) -> torch.Tensor:
        product = original(xs, ys)
        values.append((time.perf_counter(), product.item()))
        on_value(product.item())
        return product

    with mock.patch.object(MODULE, "group_product", spy):
        yield values


def perceptron(arrays: dict[str, torch.Tensor]) -> nn.Sequential:
    """Dense layers, batch norm where there are averages for it, ReLU, from a state's arrays."""
    count = sum(name.startswith("dense_") for name in arrays) // 2
    layers: list[tuple[str, nn.Module]] = [("flat", nn.Flatten())]
    for i in range(count):
        outputs, inputs = arrays[f"dense_{i}.weight"].shape
        layers.append((f"dense_{i}", nn.Linear(inputs, outputs)))
        if f"norm_{i}.weight" in arrays:
            layers.append((f"norm_{i}", nn.BatchNorm1d(outputs, eps=BATCH_NORM_EPSILON)))
            arrays[f"norm_{i}.num_batches_tracked"] = torch.tensor(0)
        if i < count - 1:
            layers.append((f"relu_{i}", nn.ReLU()))
    network = nn.Sequential(OrderedDict(layers))
    network.load_state_dict(arrays)
    return network


def main() -> None:
    torch.set_num_threads(THREADS)
    # PyHessian's own way of making its gradient.
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is not an answer
    peers = Peers()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(peers, request.pop("do"))(**request)
        # PyHessian leaves its graph in the parameters' gradients, a cycle of gigabytes.
        peers.network.zero_grad()
        gc.collect()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
