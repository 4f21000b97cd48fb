"""Code of the one-shot containers, which have the owners' credentials."""
