"""`ripple locate`: sky positions to tract, patch and pixel."""
