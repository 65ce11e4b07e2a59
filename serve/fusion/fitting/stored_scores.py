"""Validation scores kept in a bundle (`fusion/<name>/validation/`), so that a fusion can be fitted again.

`rows.safetensors` has the right answers (`truth`), the folds (`folds`), and as metadata what was asked and how a fusion
is fitted; beside it each member's `outputs` [N, C] or [N] lie in a file that is named after its adapters, and, where a
gate may be fitted, the base's `vectors` [N, H] in `vectors.safetensors`. No input text
is kept: the digest `rows` in every file's metadata says that they belong together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from serve.files import write_atomically
from serve.fusion.errors import FusionError
from serve.fusion.fitting.fit import Targets
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.members import Floats, Ints
from serve.manifest import Contract, Digest, Ensemble, Member, Task, explain

FOLDER = "validation"
_ROWS = "rows.safetensors"
_VECTORS = "vectors.safetensors"
Header = TypeVar("Header", bound=Contract)


class Question(Contract):
    """The parts of a manifest that decide what its members answer to a text."""

    task: Task
    labels: list[str] | None
    template: str
    verbalizers: dict[str, str]
    label_scoring: Literal["sum", "mean"]
    prompts: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, ensemble: Ensemble) -> Self:
        return cls(**{field: getattr(ensemble, field) for field in cls.model_fields})


class RowsHeader(Contract):
    """The metadata of the rows."""

    format: Literal[1] = 1
    rows: Digest
    """Of the texts, their right answers and the question."""
    question: Question
    options: FusionOptions


@dataclass(frozen=True)
class ValidationRows:
    """Rows that a fusion is fitted on."""

    header: RowsHeader
    truth: Targets
    folds: Ints
    """[N]"""


class _OutputsHeader(Contract):
    format: Literal[1] = 1
    rows: Digest
    adapters: list[Digest]


class ValidationScores:
    """The validation scores of one ensemble in one bundle. Reading raises FusionError for a file that is unsound."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self) -> ValidationRows | None:
        """Returns the stored rows; None if there are none."""
        file = self.folder / _ROWS
        if not file.is_file():
            return None
        header, (truth, folds) = _read(file, RowsHeader, ("truth", "folds"))
        if folds.shape != truth.shape[:1] or folds.dtype.kind not in "iu":
            raise FusionError(f"{file.name} holds {len(truth)} answers, and not a fold for each.")
        return ValidationRows(header, truth, folds)

    def outputs(self, member: Member, rows: str) -> Floats | None:
        """Returns the outputs of a member with these adapters for the rows of that digest, [N, C] or [N]; None if they
        are not stored."""
        adapters = _adapters(member)
        file = self.folder / _file_of(adapters)
        if not file.is_file():
            return None
        header, (outputs,) = _read(file, _OutputsHeader, ("outputs",))
        same = header.rows == rows and header.adapters == adapters
        return outputs.astype(np.float64) if same else None

    def vectors(self, rows: str) -> Floats | None:
        """Returns the base's vectors for the rows of that digest, [N, H]; None if they are not stored."""
        file = self.folder / _VECTORS
        if not file.is_file():
            return None
        header, (vectors,) = _read(file, _OutputsHeader, ("vectors",))
        return vectors.astype(np.float64) if header.rows == rows else None

    def write_vectors(self, rows: str, vectors: Floats) -> None:
        header = _OutputsHeader(rows=rows, adapters=[])
        _write(self.folder / _VECTORS, {"vectors": vectors.astype(np.float32)}, header)

    def write_rows(self, rows: ValidationRows) -> None:
        _write(
            self.folder / _ROWS,
            {"truth": rows.truth, "folds": rows.folds},
            rows.header,
        )

    def write_outputs(self, member: Member, rows: str, outputs: Floats) -> None:
        adapters = _adapters(member)
        header = _OutputsHeader(rows=rows, adapters=adapters)
        _write(self.folder / _file_of(adapters), {"outputs": outputs}, header)


def _adapters(member: Member) -> list[str]:
    """Sorted: the same two adapters are the same member, whichever is named first."""
    return sorted(ref.digest for ref in member.adapters)


def _file_of(adapters: Iterable[str]) -> str:
    short = [digest.removeprefix("sha256:")[:12] for digest in adapters]
    return f"{'-'.join(short) or 'base'}.safetensors"


def _read(
    file: Path, header: type[Header], names: Sequence[str]
) -> tuple[Header, list[NDArray[Any]]]:
    try:
        with safe_open(file, framework="numpy") as content:
            read = header.model_validate_json((content.metadata() or {}).get("choir", ""))
            return read, [content.get_tensor(name) for name in names]
    except ValidationError as error:
        raise FusionError(f"{file.name} holds no validation scores: {explain(error)}.") from error
    except (SafetensorError, OSError) as error:
        raise FusionError(f"{file.name} holds no validation scores: {error}.") from error


def _write(file: Path, tensors: dict[str, NDArray[Any]], header: Contract) -> None:
    """Writes a file whole or not at all."""
    whole = {name: np.ascontiguousarray(each) for name, each in tensors.items()}
    write_atomically(file, save(whole, metadata={"choir": header.model_dump_json()}))
