"""Naming cells."""
