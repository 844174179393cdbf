"""`ripple consensus`: grades of several people to candidates."""
