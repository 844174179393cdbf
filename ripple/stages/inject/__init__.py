"""`ripple inject`: lensed arcs painted into real cutouts."""
