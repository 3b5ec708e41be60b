"""Networks that make images of a wanted cell type, and those that judge them (thesis section 3.5)."""
