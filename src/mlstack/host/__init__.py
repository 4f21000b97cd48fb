"""Code that runs on the host: the commands behind `make`."""
