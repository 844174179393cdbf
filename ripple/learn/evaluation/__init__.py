"""How good is a ranking: metrics, slices, shortcut tests, robustness, curves."""
