"""Calculates features of the sixth notebook from all events, in pandas. Prints as JSON how many it compared and which differ.

A test runs it as text in the Jupyter container, after the notebook.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from mlstack import datasets

ROWS = 400
NOTEBOOK = Path("/home/mlstack/notebooks/06_features_and_scoring.ipynb")
cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
events: dict[str, Any] = {}
for cell in cells[: next(number for number, cell in enumerate(cells) if "features.Entity" in cell)]:
    exec(cell, events)  # noqa: S102 # reads the flights and says when they were known
VIEWS = {
    "carrier": ("arrivals", ("carrier",), {"1d": 1, "7d": 7, "30d": 30}),
    "airport": ("departures", ("origin",), {"3h": 3 / 24, "1d": 1, "7d": 7}),
    "route": ("arrivals", ("origin", "dest"), {"7d": 7, "30d": 30, "90d": 90}),
}
SKY = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")


def calculated(row: Any) -> dict[str, Any]:
    """The features of a row of the training set."""
    features: dict[str, Any] = {}
    for view, (source, keys, windows) in VIEWS.items():
        own = of_entity(events[source], row, keys)
        for window, days in windows.items():
            inside = own[own["known_at"] > row["at"] - pd.Timedelta(days=days)]
            features[f"{view}_n_{window}"] = len(inside)
            features[f"{view}_late_{window}"] = inside["late"].sum() / len(inside) if len(inside) else None
            features[f"{view}_minutes_{window}"] = inside["minutes"].sum() / len(inside) if len(inside) else None
    sky = of_entity(events["observed"], row, ("origin",)).sort_values("known_at").tail(1)
    sky = sky[sky["event_time"] > row["at"] - pd.Timedelta(hours=6)]
    plane = of_entity(events["built"], row, ("tailnum",))
    for view, values, columns in (("sky", sky, SKY), ("plane", plane, ("built", "seats", "engines", "type"))):
        features |= {f"{view}_{column}": values[column].iloc[0] if len(values) else None for column in columns}
    return features


def of_entity(source: pd.DataFrame, row: Any, keys: tuple[str, ...]) -> pd.DataFrame:
    """The events of an entity that were known at the time of a row."""
    is_own = source["known_at"] <= row["at"]
    for key in keys:
        is_own &= source[key] == row[key]
    return source[is_own]


def is_same(left: Any, right: Any) -> bool:
    return bool(left == right or (pd.isna(left) and pd.isna(right)))


sample = datasets.open("flights_delays").sample(ROWS, random_state=1)
rows = [(row, calculated(row)) for _, row in sample.iterrows()]
differing = [
    [str(row["at"]), name, str(value), str(row[name])]
    for row, features in rows
    for name, value in features.items()
    if not is_same(row[name], value)
]
print(json.dumps({"compared": sum(len(features) for _, features in rows), "differing": differing}))  # noqa: T201
