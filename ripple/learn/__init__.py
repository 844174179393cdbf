"""Everything that touches `torch`: loading, networks, training, scoring."""
