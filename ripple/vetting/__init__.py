"""Vetting: several people grade candidates in a local web application, and their grades are fused."""
