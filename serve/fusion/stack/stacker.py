"""What all stackers share: scores, the record of what they were fitted on, and a file of at most 1 MB. The gate shares
the latter two."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, ValidationError, model_validator

from serve.files import write_atomically
from serve.fusion.errors import FusionError
from serve.fusion.labels.tasks import rules_of
from serve.fusion.members import Floats
from serve.manifest import Contract, Digest, Ensemble, FittedModel, StackModel, Task, explain

MAX_FEATURES = 16
MAX_BYTES = 1_000_000


class FittedOn(Contract):
    """What a stacker was fitted on, as its file says."""

    format: Literal[1] = 1
    model: FittedModel
    task: Task = "classification"
    labels: Annotated[list[str], Field(min_length=1)] | None = None
    members: Annotated[list[str], Field(min_length=1)]
    digests: list[list[Digest]]
    """The digests of each member's adapters."""

    @model_validator(mode="after")
    def _check_digests(self) -> Self:
        if len(self.digests) != len(self.members):
            raise ValueError(f"'digests' must be {len(self.members)} lists, one a member")
        return self

    @property
    def columns(self) -> int:
        """Scores for each row: one for each label, or one for a value."""
        return len(self.labels) if self.labels else 1


class FittedFile(ABC):
    """Fitted parameters in a file of their own, which say what they were fitted on."""

    noun: ClassVar[str]
    """What errors call it."""
    parameters: FittedOn

    @abstractmethod
    def content(self) -> str:
        """Returns the file's text."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self:
        """Returns the parameters that the file's text describes. Raises ValidationError or FusionError."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads fitted parameters. Raises FusionError if the file does not hold them."""
        try:
            if file.stat().st_size > MAX_BYTES:
                raise FusionError(
                    f"{file.name} is larger than {MAX_BYTES:,} bytes, the most a {cls.noun} may have."
                )
            return cls.parse(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise FusionError(f"{file.name} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise FusionError(f"{file.name} is not a fitted {cls.noun}: it is not text.") from error
        except ValidationError as error:
            raise FusionError(
                f"{file.name} is not a fitted {cls.noun}: {explain(error)}."
            ) from error

    def write(self, file: Path) -> None:
        """Writes the file, whole or not at all. Raises FusionError if it would be larger than 1 MB."""
        content = self.content().encode()
        if len(content) > MAX_BYTES:
            raise FusionError(
                f"A {self.noun} of {self.parameters.columns} labels would have {len(content):,} bytes; "
                f"at most {MAX_BYTES:,} are allowed, so choose another method."
            )
        write_atomically(file, content)

    def changed_members(self, ensemble: Ensemble) -> list[str]:
        """Returns the names of members whose adapters are not those of the fit.

        Raises FusionError if the task, the model, the labels or the members differ, because the parameters then have no
        meaning."""
        fitted = self.parameters
        names = [member.name for member in ensemble.members]
        who = f"The {self.noun} of {ensemble.id}"
        if fitted.task != ensemble.task:
            raise FusionError(f"{who} was fitted for {fitted.task}, not for {ensemble.task}.")
        if ensemble.fusion.model not in (None, fitted.model):
            raise FusionError(f"{who} is a {fitted.model}, not a {ensemble.fusion.model}.")
        if fitted.labels != ensemble.labels:
            raise FusionError(f"{who} was fitted on other labels or another order of them.")
        if fitted.members != names:
            raise FusionError(
                f"{who} was fitted on the members {', '.join(fitted.members)}, "
                f"not on {', '.join(names)}."
            )
        pairs = zip(names, fitted.digests, digests_of(ensemble), strict=True)
        return [name for name, then, now in pairs if then != now]


class Stack(FittedFile):
    """A fitted stacker."""

    noun = "stacker"

    @classmethod
    @abstractmethod
    def model_for(cls, task: Task) -> StackModel:
        """Returns the manifest's name for this model."""

    @classmethod
    @abstractmethod
    def fit_evidence(cls, evidence: Floats, indicators: Floats, fitted_on: FittedOn) -> Self:
        """Fits scores for `indicators` [N, C] to `evidence` [M, N, C], which is what `Rules.evidence` makes of the
        members' outputs."""

    @abstractmethod
    def scores(self, evidence: Floats) -> Floats:
        """Returns scores [N, C] from evidence [M, N, C]: log-odds of labels, or values."""

    @classmethod
    def fit(
        cls, outputs: ArrayLike, targets: ArrayLike, ensemble: Ensemble, **options: Any
    ) -> Self:
        """Fits a stacker to held-out or out-of-fold outputs of the ensemble's members and the right answers.

        Classification: probabilities [M, N, C] and label indices [N]. Multilabel: probabilities [M, N, C] and zeros and
        ones [N, C]. Regression: values [M, N] and numbers [N]. `options` are the model's own. Raises FusionError for
        unsound input."""
        rules = rules_of(ensemble)
        names = [member.name for member in ensemble.members]
        members = rules.check(outputs, names)
        truth = rules.indicators(rules.check_targets(targets, members))
        fitted_on = FittedOn(
            model=cls.model_for(ensemble.task),
            task=ensemble.task,
            labels=ensemble.labels,
            members=names,
            digests=digests_of(ensemble),
        )
        return cls.fit_evidence(rules.evidence(members), truth, fitted_on, **options)


def grouped(columns: Floats, most: int) -> Floats:
    """Returns at most `most` of M columns [M, ...]. If there are more, neighbours in the members' order are
    averaged."""
    if len(columns) <= most:
        return columns
    return np.stack([group.mean(axis=0) for group in np.array_split(columns, most)])


def digests_of(ensemble: Ensemble) -> list[list[str]]:
    """Returns the digests of each member's adapters, in the members' order."""
    return [[ref.digest for ref in member.adapters] for member in ensemble.members]
