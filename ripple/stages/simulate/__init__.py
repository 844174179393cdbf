"""`ripple simulate`: a small simulated survey in a real Butler repository."""
