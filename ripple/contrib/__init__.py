"""Bridges to other people's frameworks; each needs that framework, which RIPPLe does not install."""
