"""`ripple fetch`: coadds to cutouts."""
