"""Landscapes: the loss along lines between minima."""

from sharpflat.landscape.line import line

__all__ = ["line"]
