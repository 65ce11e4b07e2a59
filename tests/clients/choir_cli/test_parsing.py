"""Command-line values that are more than one word: label files and NAME=VALUE pairs."""

from pathlib import Path

import pytest

from choir_cli import parsing
from choir_cli.console import UsageError


class TestParsing:
    def test_labels_are_one_on_each_line_or_json(self, tmp_path: Path) -> None:
        lines, listed = tmp_path / "labels.txt", tmp_path / "labels.json"
        lines.write_text("card arrival\n\nrefund\n")
        listed.write_text('["card arrival", "refund"]')
        assert parsing.read_labels(lines) == parsing.read_labels(listed)
        assert parsing.read_labels(lines) == ["card arrival", "refund"]

    @pytest.mark.parametrize(
        ("content", "labels"),
        [
            ("\ufeffcard\nparcel\n", ["card", "parcel"]),
            ('\ufeff["card", "parcel"]', ["card", "parcel"]),
            ("card\r\nparcel\r\n", ["card", "parcel"]),
            ("[0, 18)\n[18, 65)\n", ["[0, 18)", "[18, 65)"]),
            ("[other]\ncard\n", ["[other]", "card"]),
            ("{name}\ncard\n", ["{name}", "card"]),
            ('{\n "1": "parcel",\n "0": "card"\n}', ["card", "parcel"]),
            ("a\u2028b\nc\x0bd\ne\u0085f\n", ["a\u2028b", "c\x0bd", "e\u0085f"]),
            ("1\n2\n3\n", ["1", "2", "3"]),
            ("7", ["7"]),
            ("Smith, John\nRoe, Jane\n", ["Smith, John", "Roe, Jane"]),
            ("2024, autumn\n1999, spring\n", ["2024, autumn", "1999, spring"]),
        ],
    )
    def test_files_that_are_read_as_labels(
        self, tmp_path: Path, content: str, labels: list[str]
    ) -> None:
        file = tmp_path / "labels"
        file.write_bytes(content.encode())
        assert parsing.read_labels(file) == labels

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ('{"card": 0, "parcel": 1}', "by their numbers"),
            ('{"0": "card", "2": "parcel"}', "not the numbers from 0"),
            ('{"label": "card"}\n{"label": "parcel"}\n', "JSON Lines"),
            ("0,card\n1,parcel\n", "a number before each label"),
            ("id,label\n0,card\n1,parcel\n", "a number before each label"),
            ("1\tcard\n2\tparcel\n", "a number before each label"),
            ('"card"\n"parcel"\n', "in quotes"),
            ('["card", "card"]', "one label twice"),
            ("caf\u00e9\ncafe\u0301\n", "one label twice"),
            ('["card",\n"parcel"', "not JSON"),
            ("[0, 1, 2]", "not texts"),
        ],
    )
    def test_a_refusal_says_what_a_file_holds_instead_of_labels(
        self, tmp_path: Path, content: str, says: str
    ) -> None:
        file = tmp_path / "labels"
        file.write_bytes(content.encode())
        with pytest.raises(UsageError, match=says):
            parsing.read_labels(file)

    @pytest.mark.parametrize("content", [b"[1, 2]", b"[", b"\xff\xfe", "card".encode("utf-16")])
    def test_wrong_label_files_are_usage_errors(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "labels"
        file.write_bytes(content)
        with pytest.raises(UsageError, match="labels"):
            parsing.read_labels(file)

    def test_pairs_keep_their_order_and_further_equal_signs(self) -> None:
        assert list(parsing.pairs("--adapter", ["b=x=1", "a=y"]).items()) == [
            ("b", "x=1"),
            ("a", "y"),
        ]

    @pytest.mark.parametrize("values", [["a"], ["=x"], ["a="], ["a=x", "a=y"]])
    def test_broken_pairs_are_usage_errors(self, values: list[str]) -> None:
        with pytest.raises(UsageError, match="--adapter"):
            parsing.pairs("--adapter", values)
