"""What one works with in a notebook: open surveys, cutouts and artefacts, with pictures and tables."""
