"""Checks of images: tiny ones leave, and a picture is found again when it was scaled or stored anew."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serve.images.hostile import saved, url_of
from training.data.cleaning.families import families
from training.data.cleaning.pictures import SimilarImages, perceptual_hash, tiny_images
from training.preparation import write_splits


def scene(seed: int, side: int = 96) -> Image.Image:
    """A smooth picture, as photographs are."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def distance(one: str, other: str) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


def test_a_picture_stays_alike_when_it_is_scaled_or_stored_anew() -> None:
    original = url_of(scene(1))
    for variant in (
        url_of(scene(1).resize((50, 50))),
        url_of(scene(1), "JPEG", quality=40),
        url_of(scene(1), "WEBP"),
        url_of(scene(1).point(lambda value: min(255, value + 12))),
    ):
        assert distance(original, variant) <= 4
    others = [distance(original, url_of(scene(seed))) for seed in range(2, 30)]
    assert min(others) > 8


def test_the_index_finds_what_is_alike_in_the_order_of_keys() -> None:
    index = SimilarImages(0.9)
    for key in range(200):  # more than the first array holds
        index.add(key, url_of(scene(key % 100, 40)))
    found = index.find(url_of(scene(7, 80)))
    assert [key for key, _ in found] == [7, 107]
    assert all(share >= 0.9 for _, share in found)


def test_tiny_images_say_their_size() -> None:
    urls = [url_of(scene(1, 20)), url_of(scene(2, 64).resize((64, 12)))]
    assert tiny_images(urls, 16) == {1: "64 x 12 pixels, and the shorter side needs 16"}


def test_alike_pictures_are_one_family() -> None:
    urls = [url_of(scene(1)), url_of(scene(2)), url_of(scene(1, 60), "JPEG")]
    assert families(urls, 0.9, images=True) == [0, 1, 0]
    assert families(urls, images=True) == [0, 1, 2]


def test_rows_that_leave_are_counted_with_their_reasons(tmp_path: Path) -> None:
    """Unreadable, tiny, equal and alike."""
    pictures = {f"good-{seed}": saved(scene(seed)) for seed in range(10)}
    pictures |= {
        "broken": saved(scene(20))[:200],
        "small": saved(scene(21, 8)),
        "copy": saved(scene(3)),
        "scaled": saved(scene(4, 70)),
    }
    lines = ["image,label"]
    for number, (name, data) in enumerate(pictures.items()):
        (tmp_path / f"{name}.png").write_bytes(data)
        label = {"copy": "b", "scaled": "a"}.get(name, "ab"[number % 2])
        lines.append(f"{name}.png,{label}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "recipe.yaml").write_text(
        """
name: pictures
base: {kind: encoder, scratch: {architecture: clip, documents: ["a {label}"]}}
data:
  train: rows.csv
  image: image
  clean: {duplicates: near, min_side: 16}
  validation_fraction: 0.2
ensembles:
  - {name: e, task: classification, label: label, members: [{name: a}]}
"""
    )
    write_splits(tmp_path / "recipe.yaml", tmp_path / "out")
    left = list(map(json.loads, (tmp_path / "out/quarantine.jsonl").read_text().splitlines()))
    found = {each["origin"]: (each["step"], each["reason"]) for each in left}
    lost = {f"rows.csv:{lines.index(f'{name}.png,{label}') + 1}": name for name, label in (
        ("broken", "a"), ("small", "b"), ("copy", "b"), ("scaled", "a"))}  # fmt: skip
    steps = {name: found[origin] for origin, name in lost.items()}
    assert steps["broken"][0] == "unreadable"
    assert steps["small"] == ("tiny", "8 x 8 pixels, and the shorter side needs 16")
    assert steps["copy"] == ("duplicates", "equal to rows.csv:5")
    assert steps["scaled"][0] == "near_duplicates"
    assert "similar to rows.csv:6" in steps["scaled"][1]
    assert len(left) == 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_hash_does_not_depend_on_the_process(kind: str) -> None:
    assert perceptual_hash(url_of(scene(5), kind)) == perceptual_hash(url_of(scene(5), kind))
