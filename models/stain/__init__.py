"""Networks of stain normalisation: generators that translate between two stains, and their critics."""
