"""What a training will take of a device's memory and of time, before it runs."""
