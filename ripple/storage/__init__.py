"""Artefact directories and HDF5 shards: written atomically, read strictly."""
