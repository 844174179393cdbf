"""`ripple compare`: several scores of the same rows, side by side."""
