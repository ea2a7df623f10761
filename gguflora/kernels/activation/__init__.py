"""The gated feed-forward's activation."""
