"""GPU memory and steps of a training, planned before it runs."""
