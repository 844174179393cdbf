"""RIPPLe: Rubin sky to neural-network tensors, and back as ranked strong-lens candidates."""

__version__ = "0.1.0"
