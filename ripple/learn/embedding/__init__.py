"""`ripple embed`: what the network sees in each row."""
