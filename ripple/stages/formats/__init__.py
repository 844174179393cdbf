"""`ripple import` and `ripple export`: foreign file formats."""
