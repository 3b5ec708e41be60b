"""One file per algorithm: its players, its losses and one `step`."""
