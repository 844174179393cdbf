"""`ripple explain`: why a model ranks a candidate as it does."""
