"""Adding a branch to the residual."""
