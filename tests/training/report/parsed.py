"""Reads a page as a browser would: its elements, tables and lines."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str, **attributes: str) -> list["Element"]:
        """Every element below this one with that tag and these attributes; a class is one of several."""
        found = []
        for child in self.children:
            fits = all(
                value in child.attributes.get(name.rstrip("_"), "").split()
                for name, value in attributes.items()
            )
            found += [child] * (child.tag == tag and fits) + child.all(tag, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"<{self.open[-1].tag}> is closed by </{tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.texts.append(data)


def parse(page: str) -> Element:
    """The page's elements. Fails if an element is not closed where it should be."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].tag}> is never closed"
    return reader.root


def table(element: Element) -> list[list[str]]:
    """The texts of a table's cells."""
    return [
        [cell.text for cell in row.children if cell.tag in ("td", "th")]
        for row in element.all("tr")
    ]
