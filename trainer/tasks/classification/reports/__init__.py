"""Report and model card of a classifier's run."""
