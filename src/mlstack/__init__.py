"""A local machine-learning platform: Postgres, MinIO, MLflow and Jupyter, started with one command."""

# The only place of the version: wheels, image labels and backup manifests take it from here.
__version__ = "0.2.0"
