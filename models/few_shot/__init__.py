"""Networks of few-shot generation: encoder, generator and discriminator, and what its rivals add."""
