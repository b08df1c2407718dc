"""subset: the first training examples of another data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sharpflat.data.base import Dataset
from sharpflat.registry import dataset, datasets
from sharpflat.validation import Count, InputError, closest


@dataset
def subset(
    *, of: str = "digits", examples: Count = 100, arguments: dict[str, Any] | None = None
) -> Dataset:
    """The first training examples of another data set, and all its test examples.

    Args:
        of: its name.
        examples: how many.
        arguments: its own; ids leave out those that say where its data lie.

    Raises:
        InputError: an unknown data set or argument, more examples than it has.
    """
    if of not in datasets:
        raise InputError(f"subset: of: unknown data set {of!r}{closest(of, datasets)}")
    whole = datasets[of](**datasets[of].arguments(arguments or {}, "subset.arguments"))
    if examples > whole.train.size:
        raise InputError(
            f"subset: examples: {examples} is above the {whole.train.size} training examples of "
            f"{of!r}"
        )
    return replace(whole, name=f"subset of {of}", train=whole.train.first(examples))
