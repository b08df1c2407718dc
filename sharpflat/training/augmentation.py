"""Augmentation: pictures flipped, turned and shifted, each anew at every update."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


class Augmentation(NamedTuple):
    """What is drawn for each picture.

    Attributes:
        flip: left and right change places, for half of them.
        rotate: turned by an angle between −`rotate` and `rotate` degrees.
        shift: along each axis by a part of its length between −`shift` and `shift`.
    """

    flip: bool = False
    rotate: float = 0.0
    shift: float = 0.0


def augmented(how: Augmentation, pictures: jax.Array, key: jax.Array) -> jax.Array:
    """Pictures `[n, h, w, c]`, each with a flip, an angle and a shift of its own.

    Values between pixels are interpolated linearly, those beyond the border are the border's.
    """
    n, height, width, _ = pictures.shape
    of_flip, of_angle, of_shift = jax.random.split(key, 3)
    if how.flip:
        turned = jax.random.bernoulli(of_flip, 0.5, (n, 1, 1, 1))
        pictures = jnp.where(turned, pictures[:, :, ::-1], pictures)
    if not how.rotate and not how.shift:
        return pictures
    largest = jnp.deg2rad(how.rotate)
    angles = jax.random.uniform(of_angle, (n,), minval=-largest, maxval=largest)
    sides = how.shift * jnp.asarray([height, width])
    shifts = jax.random.uniform(of_shift, (n, 2), minval=-sides, maxval=sides)
    return jax.vmap(moved)(pictures, angles, shifts)


def moved(picture: jax.Array, angle: jax.Array, shift: jax.Array) -> jax.Array:
    """A picture `[h, w, c]` turned about its centre, counter-clockwise, then shifted by pixels."""
    height, width, _ = picture.shape
    centre = jnp.asarray([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    rows, columns = grid - centre - shift[:, None, None]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    there = jnp.stack([cosine * rows + sine * columns, cosine * columns - sine * rows]) + centre

    def channel(values: jax.Array) -> jax.Array:
        return map_coordinates(values, list(there), order=1, mode="nearest")

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(picture)
