"""`ripple vet`: candidates graded by several people."""
