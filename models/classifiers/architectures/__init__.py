"""One file per family of classifiers; the file's name is the value of `model.architecture`.

Each has `build(config, number_of_types, image_size) -> nn.Module`, a network with fresh weights: float images
[n, 3, S, S] in [-1, 1] -> logits [n, number_of_types]. Its last layer is `last_linear`.
"""
