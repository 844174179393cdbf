"""`ripple completeness`: what a finder would have found, from arcs that were painted into real cutouts."""
