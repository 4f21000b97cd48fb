"""The scoring service: registered models answer HTTP requests, by alias (docs/scoring.md, docs/adr/0031)."""
