"""Networks of stain normalisation: generators between two stains, and the critics that judge them."""
