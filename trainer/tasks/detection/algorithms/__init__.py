"""Algorithms that train detectors, a file each."""
