"""Output layer and cross-entropy, on labelled rows alone."""
