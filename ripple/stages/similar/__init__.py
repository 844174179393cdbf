"""`ripple similar`: rows that look alike to the network."""
