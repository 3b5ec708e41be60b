"""Training a classifier, in steps or at once."""
