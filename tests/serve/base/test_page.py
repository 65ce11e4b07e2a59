"""docs/bases.md says what the code does. What it says was seen is made by `python -m tests.bench.bases`."""

from serve.base.causal_models import TEXT
from tests.bench.bases.candidates import CANDIDATES
from tests.bench.bases.page import EQUAL, PAGE, kinds, read, render, unserved


def test_the_page_says_of_every_base_what_the_tables_say() -> None:
    rows = {(row.base, row.kind): row.reason for row in read(PAGE.read_text("utf-8"))}
    tables = {
        (each.name, kind): unserved(each, kind) for each in CANDIDATES for kind in kinds(each)
    }
    assert rows == {key: tables[key] for key in rows}
    assert {key for key, reason in tables.items() if reason is not None} <= rows.keys()


def test_what_is_served_was_seen_to_equal_transformers() -> None:
    seen = [row.difference for row in read(PAGE.read_text("utf-8")) if row.reason is None]
    assert len(seen) > 20
    assert all(each is not None and each <= EQUAL for each in seen)


def test_the_page_names_every_causal_model_that_is_served() -> None:
    text = PAGE.read_text("utf-8")
    assert [name for name in sorted(TEXT) if f"`{name}`" not in text] == []


def test_making_the_page_anew_loses_nothing_that_somebody_wrote_into_it() -> None:
    text = PAGE.read_text("utf-8")
    assert render(read(text)) == text
