"""Banks of generated images."""
