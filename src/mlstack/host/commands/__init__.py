"""What the commands do to a stack."""
