"""Scores of trained models, and how they are kept in a run directory."""
