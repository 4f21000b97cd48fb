"""What runs in one-shot containers, with the owners' credentials."""
