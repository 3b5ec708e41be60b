"""Naming cells. A room imports only rooms below it in this list.

adaptation/    to a laboratory's own images, with or without labels; review/: the labels of a data set
algorithms/    training steps
training/      the training of a run: its stream, mixed images, heads on frozen features, calibration, final score
evaluation/    scores of trained classifiers, under corruptions too
inference/     trained classifiers at work: loading, ensembles, predictions, counts, export
reports/       the report and the model card of a run
uncertainty/   how sure an answer is: views, calibrated probabilities, distance from the training images
shipped/       the classifier that the installation brings along
"""
