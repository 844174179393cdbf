"""Everything that touches `lsst.*`: repositories and the files in them."""
