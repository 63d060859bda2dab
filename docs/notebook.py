"""Writes the notebook of from_one_device_to_eight.md, executed by a kernel: python docs/notebook.py"""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import v4

PAGE = Path(__file__).with_name("from_one_device_to_eight.md")
_BLOCK = re.compile(r"```(\w+)\n(.*?)```\n", re.DOTALL)


def notebook(page: str) -> nbformat.NotebookNode:
    """The page's cells: text, and code; the outputs that the page shows are left to the kernel."""
    cells, place = [], 0
    for block in _BLOCK.finditer(page):
        if text := page[place : block.start()].strip():
            cells.append(v4.new_markdown_cell(text))
        if block[1] == "python":
            cells.append(v4.new_code_cell(block[2].strip()))
        place = block.end()
    cells.append(v4.new_markdown_cell(page[place:].strip()))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # else it would be another one at each writing
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.NotebookNode(v4.new_notebook(cells=cells, metadata=metadata))


def execute(book: nbformat.NotebookNode, folder: Path) -> list[str]:
    """Runs the cells in a fresh kernel, in `folder`; returns what each code cell printed."""
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}, record_timing=False).execute()
    return [printed(cell) for cell in book.cells if cell.cell_type == "code"]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


if __name__ == "__main__":
    book = notebook(PAGE.read_text())
    execute(book, PAGE.parent)
    for cell in book.cells:
        if cell.cell_type == "code":  # progress bars are widgets, which only a live kernel shows
            cell.outputs = [output for output in cell.outputs if output.output_type == "stream"]
    book.metadata.pop("widgets", None)
    nbformat.write(book, PAGE.with_suffix(".ipynb"))
