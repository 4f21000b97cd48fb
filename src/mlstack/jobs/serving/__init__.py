"""The one-shot scoring-database of the part `scoring`: roles, schemas and tables of decisions and features (docs/adr/0033)."""
