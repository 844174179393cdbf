"""PSFs: their shape, kernels between them, matching a batch to one PSF."""
