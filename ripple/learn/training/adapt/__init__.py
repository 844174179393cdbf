"""Domain adaptation: a finder trained on labelled source rows learns to work on unlabelled target rows."""
