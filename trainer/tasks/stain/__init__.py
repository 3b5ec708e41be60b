"""From one stain to another."""
