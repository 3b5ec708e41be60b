"""Reviewing the labels of a data set."""
