"""`ripple import` and `ripple export`: the file formats of other people."""
