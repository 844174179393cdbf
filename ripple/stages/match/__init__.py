"""`ripple match`: which known lenses a search has found, and why not the others."""
