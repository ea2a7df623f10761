"""A linear layer with an optional pair."""
