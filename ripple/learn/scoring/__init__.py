"""`ripple score`: a model and tensors to ranked candidates."""
