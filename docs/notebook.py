"""Writes the notebooks of two pages, executed by a kernel, and the pictures that they draw: python docs/notebook.py"""

import base64
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import v4

PAGES = [Path(__file__).with_name(f"{name}.md") for name in ("from_one_device_to_eight", "from_a_table_to_a_model")]
# A block; and of a program, the picture that the page shows below it, of what it draws.
_BLOCK = re.compile(r"```(?:(python)|\w+)\n(.*?)```\n(?(1)(?:\n!\[[^]]*\]\((images/[\w.]+)\)\n)?)", re.DOTALL)


def notebook(page: str) -> nbformat.NotebookNode:
    """The page's cells: text, and code; the outputs that the page shows are left to the kernel."""
    cells, place = [], 0
    for block in _BLOCK.finditer(page):
        if text := page[place : block.start()].strip():
            cells.append(v4.new_markdown_cell(text))
        if block[1]:
            cells.append(v4.new_code_cell(block[2].strip()))
        place = block.end()
    cells.append(v4.new_markdown_cell(page[place:].strip()))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # else it would be another one at each writing
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.NotebookNode(v4.new_notebook(cells=cells, metadata=metadata))


def pictures(page: str) -> list[str]:
    """The picture that each code cell draws, a path beside the page; "" for none."""
    return [block[3] or "" for block in _BLOCK.finditer(page) if block[1]]


def code(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def execute(book: nbformat.NotebookNode, folder: Path) -> list[str]:
    """Runs the cells in a fresh kernel, in `folder`; returns what each code cell printed."""
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}, record_timing=False).execute()
    return [printed(cell) for cell in code(book)]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def drawn(cell: nbformat.NotebookNode) -> bytes:
    """The last picture that a cell has drawn, a PNG; empty if there is none."""
    found = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", ())]
    return base64.b64decode(found[-1]) if found else b""


def write(page: Path) -> None:
    book = notebook(page.read_text())
    with tempfile.TemporaryDirectory() as folder:
        execute(book, Path(folder))
    for cell, picture in zip(code(book), pictures(page.read_text()), strict=True):
        # Progress bars are widgets, which only a live kernel shows.
        cell.outputs = [output for output in cell.outputs
                        if output.output_type == "stream" or "image/png" in output.get("data", ())]  # fmt: skip
        if picture:
            (page.parent / picture).write_bytes(drawn(cell))
    book.metadata.pop("widgets", None)
    nbformat.write(book, page.with_suffix(".ipynb"))


if __name__ == "__main__":
    for page in PAGES:
        write(page)
