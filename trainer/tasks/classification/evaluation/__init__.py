"""Scoring trained classifiers on a data set."""
