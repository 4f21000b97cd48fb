"""Shipped notebooks, run in Jupyter as a user's *Run All* does."""

import nbformat

from tests.support.clone import Clone


def run(stack: Clone, name: str) -> str:
    """What a notebook of the folder `notebooks` prints. Fails the test if a cell fails, or if a warning is printed."""
    stack.in_container(
        "jupyter", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--log-level", "WARN",
        "--output-dir", "/home/mlstack/executed", f"notebooks/{name}",
    )  # fmt: skip
    executed = nbformat.reads(stack.in_container("jupyter", "cat", f"/home/mlstack/executed/{name}"), as_version=4)
    printed = "\n".join(
        output.get("text", "")
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    )
    assert "Warning" not in printed and " WARNING " not in printed, printed
    return printed
