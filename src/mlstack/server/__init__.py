"""MLflow's server as this stack runs it: its own application, and what is added to it."""
