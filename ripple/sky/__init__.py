"""Pure functions on positions: tract geometry, sky maps, coverage, neighbours, splits."""
