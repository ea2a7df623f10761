"""Causal attention inside each document of a packed row."""
