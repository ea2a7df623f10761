"""Packed blocks to numbers."""
