"""A local machine-learning platform: Postgres, MinIO, MLflow and Jupyter, started with one command."""
