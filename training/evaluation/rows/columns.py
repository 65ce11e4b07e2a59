"""The columns that an ensemble reads: those that a recipe names, or those that a file must have without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from serve.adapter import inspect_adapter
from serve.adapter.head.check import joins_pairs
from serve.base.folder import read_config
from serve.base.two_towers import towers_of
from serve.bundle import Bundle
from serve.manifest import Ensemble
from training.data.loading import has_column
from training.data.steps import inputs_of
from training.recipe import DataRecipe
from training.stages.vision_language.family import writes_about_images

TEXT, PAIR, IMAGE = "text", "text_pair", "image"


@dataclass(frozen=True)
class InputColumns:
    """The columns of the inputs."""

    inputs: Sequence[str]
    """One column; or the column of images and that of the texts beside them."""
    pair: str | None = None
    """The column of the second texts of pairs."""
    images: Sequence[str] = ()
    """Those that hold images."""

    @classmethod
    def of_recipe(cls, data: DataRecipe) -> "InputColumns":
        """Return the columns that a recipe names."""
        inputs = [data.input, *([data.image_text] if data.image_text else [])]
        return cls(inputs, data.text_pair, data.images)

    @classmethod
    def of_file(cls, bundle: Bundle, ensemble: Ensemble, file: Path) -> "InputColumns":
        """Return the columns that a file has for an ensemble without a recipe. Under a base that writes about images,
        the file decides whether there are images, texts or both."""
        if has_towers(bundle):
            return cls([IMAGE], None, [IMAGE])
        if _writes_about_images(bundle) and has_column(file, IMAGE):
            beside = [TEXT] if has_column(file, TEXT) else []
            return cls([IMAGE, *beside], None, [IMAGE])
        return cls([TEXT], _pair(bundle, ensemble, file))

    @property
    def all(self) -> list[str]:
        """All of them."""
        return [*self.inputs, *([self.pair] if self.pair else [])]

    def cells(self, rows: Dataset) -> list[str]:
        """Return each row's input: a text, an image, or an image and the text beside it."""
        return inputs_of(rows, self.inputs)

    def pairs(self, rows: Dataset) -> list[str] | None:
        """Return the second texts; None if rows are no pairs."""
        return list(rows[self.pair]) if self.pair else None


def has_towers(bundle: Bundle) -> bool:
    """Return whether the bundle's base is a CLIP or SigLIP."""
    base = bundle.base_on_disk()
    return base is not None and towers_of(read_config(base)) is not None


def _writes_about_images(bundle: Bundle) -> bool:
    base = bundle.base_on_disk()
    return base is not None and writes_about_images(read_config(base))


def _pair(bundle: Bundle, ensemble: Ensemble, file: Path) -> str | None:
    """Return the column of second texts if the ensemble's heads read pairs, or may read them and the file has it."""
    folders = [bundle.adapter_dir(ref) for member in ensemble.members for ref in member.adapters]
    if any(inspect_adapter(folder).reads_pairs for folder in folders):
        return PAIR
    joined = bool(folders) and all(map(joins_pairs, folders))
    return PAIR if joined and has_column(file, PAIR) else None
