"""What `make import` needs the whole of MLflow for: it turns a source into a SQLite database of the present schema.

Runs in a container without a network and without a secret, because what it parses comes from elsewhere.
"""
