"""Curvature: linear algebra on a matrix-vector product."""
