"""Classifiers of single blood cells: SENet-154-GE, its small relatives, and its rivals."""
