"""`ripple search`: from coadds to scores in one pass; neither cutouts nor tensors are written."""
