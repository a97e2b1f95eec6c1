"""Bytes to arrays and back: what callers send, and what they get."""
