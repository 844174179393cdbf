"""One verb is one function from one artefact to the next; its options are in `config.py` beside it."""
