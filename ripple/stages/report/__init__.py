"""`ripple report`: the page of an artefact."""
