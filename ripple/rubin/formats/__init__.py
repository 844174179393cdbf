"""The files of coadds, read without the LSST stack."""
