"""One run: its directory, settings and record."""
