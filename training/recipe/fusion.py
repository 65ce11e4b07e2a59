"""The recipe's part on fusion: the method, and how it is fitted."""

from typing import Literal, get_args

from serve.fusion.fitting.options import CRITERIA, FusionMethod, FusionOptions
from serve.manifest import METHODS, PREFIX_METHODS, STACK_MODELS, Task

GenerationMethod = Literal["average", "product", "vote", "mbr", "stack"]
GENERATION_METHODS: tuple[GenerationMethod, ...] = get_args(GenerationMethod)
"""`average` and `product` fuse at every token; `vote`, `mbr` and `stack` choose among whole answers."""


class FusionRecipe(FusionOptions):
    """The fusion of an ensemble."""

    method: FusionMethod | Literal["best", "auto"] = "best"  # type: ignore[assignment]  # `options` narrows it again
    """`best`: the candidate with the best cross-fitted validation score; for generation, `average`. `auto`: what the
    leaderboard recommends, which may be one member alone. All members fused as by `best` are version 1 then, and the
    recommended rung version 2."""

    @property
    def options(self) -> FusionOptions:
        """What is fitted. With `auto`, the members are first fused as by `best`."""
        method = "best" if self.method == "auto" else self.method
        return FusionOptions.model_validate({**self.model_dump(), "method": method})

    def check(self, task: Task) -> None:
        """Check that the options fit `task`. Raises ValueError otherwise."""
        for key in ("early_exit", "abstain"):
            if getattr(self, key) is not None and task != "classification":
                raise ValueError(f"`{key}` is for classification, not for {task}")
        if self.top_k is not None and "gate" not in self.options.methods(task):
            raise ValueError(
                "`top_k` says how many members a gate asks: choose `method: gate`, or name gate among the `candidates`"
            )
        if task == "generation":
            if self.method not in ("best", "auto", *GENERATION_METHODS):
                raise ValueError(
                    f"generation is fused by {', '.join(GENERATION_METHODS)}, not by {self.method}"
                )
            unfitted = [str(each) for each in self.candidates or () if each != "stack"]
            if unfitted:
                raise ValueError(
                    f"`candidates` of generation may name stack, which is then fitted too, and not {unfitted[0]}"
                )
            return
        if self.method == "product":
            raise ValueError(f"product is for generation; for {task} use `space: log`")
        strange = [method for method in self.options.methods(task) if method not in METHODS[task]]
        if strange:
            raise ValueError(f"{task} is fused by {', '.join(METHODS[task])}, not by {strange[0]}")
        if self.criterion not in (None, *CRITERIA[task]):
            raise ValueError(
                f"the criterion of {task} is {' or '.join(CRITERIA[task])}, not {self.criterion}"
            )
        if self.stack not in (None, *STACK_MODELS[task]):
            raise ValueError(
                f"{task} is stacked by {' or '.join(STACK_MODELS[task])}, not by {self.stack}"
            )
        early = [method for method in self.methods(task) if method in PREFIX_METHODS]
        chosen = self.method in ("best", "auto")
        if self.early_exit and not (early and (chosen or self.method in PREFIX_METHODS)):
            raise ValueError(
                f"`early_exit` needs one of {', '.join(PREFIX_METHODS)}; the others read every member"
            )
        if self.space == "log" and task == "regression":
            raise ValueError("`space: log` is for probabilities, not for the values of regression")
