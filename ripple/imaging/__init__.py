"""Pure functions on (N, B, H, W) pixels: no files, no lsst, no torch."""
