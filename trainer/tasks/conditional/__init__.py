"""Generators of a wanted cell type."""
