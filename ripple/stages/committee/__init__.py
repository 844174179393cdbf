"""`ripple committee`: scores of the same objects by several models, combined to one ranking."""
