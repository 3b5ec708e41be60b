"""Adapting a trained classifier to a laboratory with its images, its labelled cells, or both."""
