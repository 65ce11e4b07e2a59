"""The recipe's part on one ensemble: its task, columns, members and fusion."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from serve.adapter import DEFAULT_RANK_LIMIT
from serve.labels import IMAGE, INVOCATION
from serve.manifest import LABELLED, Extract, Name, Task
from training.recipe.fusion import FusionRecipe
from training.recipe.member import CandidateRecipe, MemberRecipe, with_defaults
from training.recipe.search import SearchRecipe, searchable
from training.recipe.stages import LARGEST_RANK, AloraStage, LoraStage
from training.recipe.values import SEPARATOR, Column, Label, Strict

MergeMethod = Literal[
    "cat", "svd", "ties_svd", "dare_ties_svd", "linear", "uniform_soup", "greedy_soup"
]
LONGEST_NAME = 63
"""The most characters of a name in a bundle."""
RIVAL = "rival"
"""The name of the one adapter that rivals all members."""


class EnsembleRecipe(Strict):
    """One ensemble: a task over one column, its members and its fusion."""

    name: Name
    """The ensemble's name."""
    task: Task
    """The task. `multilabel` and `regression` need heads; `generation` needs a base that answers by text."""
    template: str = "{text}"
    """Answers by text: the prompt. It must contain `{text}`. At its end, `{invocation}` stands for the invocation of
    each member that is an activated LoRA, and for nothing in the others' prompts. Over images, `{image}` says where the
    image stands; by default right before the text. `{text}` may then be left out."""
    label: Column | None = None
    """Classification: column of the labels. Multilabel: column of each row's labels, as a list or joined by `|`."""
    labels: list[Label] | None = None
    """The labels in their order; default: all labels of the training rows, sorted."""
    verbalizers: dict[Label, str] = Field(default_factory=dict)
    """The text that stands for each label where labels are read as text; default: a space and the label, or in
    `prompts` the label."""
    label_scoring: Literal["sum", "mean"] = "sum"
    """Answers by text: a label's score is the sum or the mean of its tokens' log-probabilities."""
    prompts: list[Annotated[str, Field(pattern=r"\{label\}")]] = Field(default_factory=list)
    """CLIP and SigLIP, classification: texts with `{label}`, such as `a photo of a {label}`. Members then have no
    heads: an image has the label whose texts are closest to it. `verbalizers` may name a label in other words."""
    target: Column | None = None
    """Generation: column of the replies. Regression: column of the values."""
    max_new_tokens: int = Field(64, ge=1)
    """Generation: the most tokens of an answer in evaluation."""
    evaluation_rows: int = Field(200, ge=1)
    """Generation: the most rows of a split for which answers are written."""
    extract: Extract | None = None
    """Generation: the part of an answer that `vote` and `mbr` compare; default: the whole answer."""
    defaults: dict[str, Any] = Field(default_factory=dict)
    """Default values for the keys of members and stages. A member's own keys win."""
    members: list[MemberRecipe] = Field(min_length=1)
    """The members of the ensemble."""
    candidates: list[CandidateRecipe] = Field(default_factory=list)
    """Adapters that are trained too, but stay outside the ensemble, in `BUNDLE/candidates/`. A swap to one fits the
    fusion again."""
    rivals: bool = False
    """Also train the fair rival of the members: one LoRA on all training rows, with all their ranks together and the
    other keys of the first LoRA among them. The leaderboard compares it with the ensemble."""
    merges: list[MergeMethod] = Field(default_factory=list)
    """Also merge the LoRA members into one adapter, in each of these ways, for the leaderboard. `cat` is the exact
    weighted sum of the updates, at the sum of the ranks; the soups average all members, or those that help."""
    search: SearchRecipe | None = None
    """Search for one set of values for all members and candidates. Trials are judged by the members' average."""
    fusion: FusionRecipe = FusionRecipe()
    """How the members' answers become one."""
    baselines: list[Literal["tfidf_svc"]] = Field(default_factory=list)
    """Classification: baselines in the report. `tfidf_svc` is a linear SVC on TF-IDF (words 1-2, characters 2-5); for
    pairs it reads both texts, their difference and their product."""
    golden: int = Field(0, ge=0)
    """How many golden inputs the manifest gets at most: validation rows that the fusion answers correctly."""
    on_member_error: Literal["fail", "degrade"] = "fail"
    """What happens to a request if a member fails, as in the manifest."""

    @property
    def answer(self) -> str:
        """The column of the right answers."""
        return str(self.label or self.target)

    @property
    def words_labels(self) -> bool:
        """Whether the recipe says how labels are written as text."""
        plain = (self.template, self.label_scoring) == ("{text}", "sum")
        return bool(self.verbalizers) or not plain

    @property
    def rival(self) -> MemberRecipe | None:
        """The one adapter that rivals all members; None if the recipe asks for none."""
        loras = [
            stage for each in self.members for stage in each.stages if isinstance(stage, LoraStage)
        ]
        if not self.rivals or not loras:
            return None
        first, rank = loras[0], sum(lora.rank for lora in loras)
        # The same scaling as the first, whose learning rate it has.
        alpha = None if first.alpha is None else first.alpha * rank / first.rank
        stage = first.model_copy(update={"rank": rank, "alpha": alpha})
        return MemberRecipe(name=RIVAL, seed=self.members[0].seed, stages=[stage])

    def invocation(self, member: MemberRecipe) -> str | None:
        """Return the text from which a member's activated LoRA acts; None if the member has none. Raises ValueError if
        the template does not end in it."""
        stage = member.alora
        if stage is None:
            return None
        if stage.invocation is None:
            _, line, last = self.template.rpartition("\n")
            if not line or not last or "{" in last:
                raise ValueError(
                    f"member {member.name!r}: say from which text the activated LoRA acts, with `invocation`; only a "
                    "last line of the template without fields is a default"
                )
            return line + last
        if not self.template.endswith((INVOCATION, stage.invocation)):
            raise ValueError(
                f"member {member.name!r}: the template must end in {INVOCATION} or in {stage.invocation!r}, from which "
                "the activated LoRA acts"
            )
        return stage.invocation

    @property
    def searches(self) -> list[SearchRecipe]:
        """The ensemble's own, and those of its members and candidates."""
        members = [*self.members, *self.candidates]
        found = [self.search, *(member.search for member in members)]
        return [search for search in found if search is not None]

    @model_validator(mode="before")
    @classmethod
    def _apply_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("defaults"), dict):
            return data
        merged = dict(data)
        for key in ("members", "candidates"):
            if isinstance(data.get(key), list):
                merged[key] = [with_defaults(entry, data["defaults"]) for entry in data[key]]
        return merged

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        wanted, other = ("label", "target") if self.task in LABELLED else ("target", "label")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(
                f"a {self.task} ensemble names its `{wanted}` column, and no `{other}`"
            )
        if self.prompts and self.task != "classification":
            raise ValueError(f"`prompts` is for classification, not for {self.task}")
        if self.baselines and self.task != "classification":
            raise ValueError("baselines are for classification")
        if self.labels is not None and self.task not in LABELLED:
            raise ValueError(f"`labels` is for {' and '.join(LABELLED)}, not for {self.task}")
        labels = self.labels or []
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"the label {label!r} is listed twice in `labels`")
            if self.task == "multilabel" and SEPARATOR in label:
                raise ValueError(
                    f"the label {label!r} has a {SEPARATOR}, which separates the labels of a cell; rename the label"
                )
        self.fusion.check(self.task)
        self._check_searches()
        if "{text}" not in self.template and IMAGE not in self.template:
            raise ValueError("template must contain {text} or {image}")
        if self.template.count(IMAGE) > 1:
            raise ValueError("template has {image} twice, and an input has one image")
        if INVOCATION in self.template.removesuffix(INVOCATION):
            raise ValueError(f"{INVOCATION} stands at the template's end")
        for member in [*self.members, *self.candidates]:
            self.invocation(member)
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError("members need different names")
        for candidate in self.candidates:
            if candidate.member not in names:
                raise ValueError(
                    f"candidate {candidate.name!r} names the unknown member {candidate.member!r}"
                )
        adapters = names + [candidate.name for candidate in self.candidates]
        if len(set(adapters)) != len(adapters):
            raise ValueError(
                "candidates need names that differ from each other and from the members'"
            )
        top_k = self.fusion.top_k
        if top_k is not None and top_k > len(self.members):
            raise ValueError(
                f"fusion.top_k asks {top_k} members, and there are {len(self.members)}; leave it out to ask all"
            )
        self._check_adapter_names()
        self._check_rival(adapters)
        self._check_merges()
        return self

    def _check_rival(self, adapters: list[str]) -> None:
        if not self.rivals:
            return
        if self.rival is None:
            raise ValueError(
                "rivals puts the ranks of all members into one lora; no member has one"
            )
        if RIVAL in adapters:
            raise ValueError(f"the rival is called {RIVAL!r}; give the member of that name another")
        ranks = sum(stage.rank for stage in self.rival.stages if isinstance(stage, LoraStage))
        if ranks > LARGEST_RANK:
            raise ValueError(
                f"the members' ranks together are {ranks}, and an engine takes at most {LARGEST_RANK}; leave out rivals"
            )

    def _check_merges(self) -> None:
        """Check now what a merge would refuse only after the training."""
        if not self.merges:
            return
        ranks = []
        for member in self.members:
            (first, *others) = member.adapters
            if others or not isinstance(first, LoraStage) or isinstance(first, AloraStage):
                raise ValueError(
                    f"merges are of LoRAs, and member {member.name!r} is not one LoRA; leave out merges"
                )
            ranks.append(first.rank)
        if "cat" in self.merges and sum(ranks) > DEFAULT_RANK_LIMIT:
            raise ValueError(
                f"merges: cat needs the sum of the members' ranks, {sum(ranks)}, and an engine takes "
                f"{DEFAULT_RANK_LIMIT} by default; write svd, the closest LoRA of that rank"
            )
        if "linear" in self.merges and len(set(ranks)) > 1:
            raise ValueError("merges: linear needs members of one rank; write cat or svd")

    def _check_adapter_names(self) -> None:
        """Check the names of adapters now: the bundle would refuse them only after the training."""
        for member in [*self.members, *([self.rival] if self.rival else [])]:
            for name in member.adapter_names(self.name):
                if len(name) > LONGEST_NAME:
                    raise ValueError(
                        f"member {member.name!r}: its adapter would be called {name}, which has {len(name)} "
                        f"characters; a name has at most {LONGEST_NAME}, so shorten the member's or the ensemble's name"
                    )

    def _check_searches(self) -> None:
        members = [*self.members, *self.candidates]
        for member in members:
            if member.search is None:
                continue
            if self.search is not None:
                raise ValueError(
                    f"member {member.name!r} has a search, and the ensemble has one for all members; remove one of them"
                )
            member.search.check(self.task, [*member.stages])
        if self.search is not None:
            self.search.check(self.task, [searchable([*member.stages]) for member in members])
