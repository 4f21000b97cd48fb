"""Moving in: what another MLflow holds becomes a SQLite database of the present schema (`source`, `server`), from which rows
(`rows`) and files (`files`) are copied into the stack.
"""
