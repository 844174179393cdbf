"""`ripple plan`: targets and what exists give units of work."""
