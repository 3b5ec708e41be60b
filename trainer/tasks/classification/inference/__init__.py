"""Using trained classifiers: loading, ensembles, predictions, counts, export."""
