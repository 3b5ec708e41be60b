"""How sure an answer is: views averaged, calibrated probabilities, distance from the training images."""
