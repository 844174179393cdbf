"""Training a finder, with or without domain adaptation."""
