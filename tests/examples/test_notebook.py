"""The notebook as it lies in the repository; `tests/service/clients/test_notebook.py` runs it."""

from tests.examples import notebook


def test_it_can_be_opened_and_holds_no_outputs() -> None:
    cells = notebook.read().cells

    assert [cell for cell in cells if cell.cell_type == "code"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
