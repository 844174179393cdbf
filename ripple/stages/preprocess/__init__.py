"""`ripple preprocess`: cutouts to tensors."""
