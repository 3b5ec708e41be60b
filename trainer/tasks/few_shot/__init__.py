"""Generators of rare types."""
