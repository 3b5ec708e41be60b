"""The stain task: training generators between two stains, scoring them, and normalising data sets with them."""
