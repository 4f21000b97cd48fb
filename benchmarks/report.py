"""The results of a run: a table on the terminal, JSON with everything, the pictures, and the block of docs/performance.md."""

import base64
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.figures import DEFAULTS, MLSTACK, RAW, Against, Figure, number
from benchmarks.growth import Point, slope
from benchmarks.stacks import HERE, Stack
from mlstack.host.compose import docker
from tests.support.pages import begin

BEGIN = begin("make bench")
# Goals are internal: they are in the JSON, not in the table for users.
HEAD = ("line", "defaults", "mlstack", "better by", "raw limit", "of it")
MEGABYTE = 1_000_000


def cells(figure: Figure) -> tuple[str, ...]:
    """A line of the table: medians, with the smallest and largest value where there are several."""
    line = figure.line
    ratio = f"{number(figure.ratio)}×" if figure.ratio else ""
    part = f"{figure.share:.0%}" if figure.share else ""
    return (
        f"{line.label}, {line.unit}",
        *(_value(figure, side) for side in (DEFAULTS, MLSTACK)),
        ratio,
        _value(figure, RAW),
        part,
    )


def _value(figure: Figure, side: str) -> str:
    middle, spread = figure.median(side), figure.spread(side)
    if middle is None or spread is None:
        return ""
    return number(middle) if len(figure.values[side]) == 1 else f"{number(middle)} ({number(spread[0])}–{number(spread[1])})"


def show(console: Console, figures: Sequence[Figure]) -> None:
    """The table on the terminal."""
    table = Table(*HEAD, header_style="bold", pad_edge=False)
    for figure in figures:
        table.add_row(*cells(figure))
    console.print(table)


def measured(record: dict[str, Any], figures: Sequence[Figure]) -> str:
    """A block of a page: date and host, and the table."""
    where, size = record["machine"], record["size"]
    parts = (
        f"Measured on {record['when'][:10]} with {where['cores']} cores ({where['processor']}), {where['memory']:.0f} GiB, "
        f"Linux {where['kernel']}, Docker {where['docker']}, MLflow {record['mlflow']}. "
        f"Medians of {size['repetitions']} repetitions, in brackets the smallest and the largest.",
        "\n".join(f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *map(cells, figures))),
    )
    return "\n\n".join(parts)


def markdown(record: dict[str, Any], figures: Sequence[Figure], points: Sequence[Point]) -> str:
    """The block of docs/performance.md: what was measured, the pictures, growth, the images."""
    parts = [
        measured(record, figures),
        "![How many times better than the defaults](images/performance.png)",
    ]
    if points:
        rows = [
            (
                f"{point.runs:,}", point.side, number(point.rate), number(point.latency * 1000), number(point.search * 1000),
            )
            for point in points
        ]  # fmt: skip
        head = ("runs in the database", "stack", "log_metric in a loop, calls/s", "synchronous log_metric, ms", "search, ms")
        parts += [
            "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)),
            "![Growth](images/growth.png)",
            "Exponents between neighbouring sizes (1 is linear): "
            + "; ".join(
                f"search of {side} {', '.join(f'{exponent:.2f}' for exponent in slope(list(points), side, 'search'))}"
                for side in (DEFAULTS, MLSTACK)
            )
            + ".",
        ]
    images = record["images"]
    sizes = ", ".join(f"{service} {size} MB" for service, size in images["sizes"].items())
    parts.append(
        f"Images: {sizes}; together {images['together']} MB, as MLflow and Jupyter share {images['shared']} MB of their layers."
    )
    return "\n\n".join(parts)


def draw(shipped: Stack, figures: Sequence[Figure], points: Sequence[Point]) -> dict[str, bytes]:
    """The pictures, by name."""
    request = {
        "lines": [
            {
                "label": figure.line.label,
                "ratio": figure.ratio,
                "goal_ratio": next((goal.bound for goal in figure.line.goals if goal.against is Against.DEFAULTS), None),
            }
            for figure in figures
        ],
        "growth": [vars(point) for point in points],
    }
    program = (HERE / "plots.py").read_text(encoding="utf-8")
    done = subprocess.run(
        ["docker", "compose", "exec", "--no-TTY", shipped.client_service, "python3", "-c", program],
        cwd=shipped.folder,
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {name: base64.b64decode(picture) for name, picture in json.loads(done.stdout).items()}


def lines(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """For the record: each line with every value."""
    return [
        {
            "key": figure.line.key,
            "label": figure.line.label,
            "unit": figure.line.unit,
            "better": figure.line.better.value,
            "goals": [goal.text(figure.line) for goal in figure.line.goals],
            "values": figure.values,
            "medians": {side: figure.median(side) for side in figure.values},
            "ratio": figure.ratio,
            "share": figure.share,
            "met": figure.met,
        }
        for figure in figures
    ]


def machine() -> dict[str, Any]:
    """The host on which it was measured."""
    model = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cores": psutil.cpu_count(),
        "processor": model[0] if model else platform.machine(),
        "memory": psutil.virtual_memory().total / 2**30,
        "kernel": platform.release(),
        "docker": docker("version", "--format", "{{.Server.Version}}").strip(),
        "load": psutil.getloadavg()[0],
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def images(stack: Stack) -> dict[str, Any]:
    """Unpacked sizes in MB from Docker, and how much MLflow and Jupyter share."""
    names = {service: f"{stack.name}-{service}" for service in ("postgres", "minio", "mlflow", "jupyter")}
    sizes = {service: int(docker("image", "inspect", "--format", "{{.Size}}", name)) for service, name in names.items()}
    layers = [
        json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", names[service]))
        for service in ("mlflow", "jupyter")
    ]
    common = next(
        (depth for depth, (first, second) in enumerate(zip(*layers, strict=False)) if first != second), min(map(len, layers))
    )
    # `docker history` lists the newest first, and lines without a layer, whose size is 0.
    history = [
        int(size) for size in docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}", names["mlflow"]).split()
    ]
    layer_sizes = [size for size in reversed(history) if size]
    shared = sum(layer_sizes[:common])
    base = layer_sizes[0]  # debian:trixie-slim, the base of all four
    others = 2 if _first_layer(names["postgres"]) == layers[0][0] else 0
    return {
        "sizes": {service: round(size / MEGABYTE) for service, size in sizes.items()},
        "shared": round(shared / MEGABYTE),
        "together": round((sum(sizes.values()) - shared - others * base) / MEGABYTE),
    }


def _first_layer(image: str) -> str:
    first: str = json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))[0]
    return first
