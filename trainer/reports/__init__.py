"""Pages that show what a run learned and how it was scored: one self-contained HTML file each."""
