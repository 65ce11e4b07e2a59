"""Steps of the fusion: another method, or a member less. Both are measured on stored outputs."""

from dataclasses import dataclass

from serve.fusion.errors import FusionError
from serve.fusion.stack import STACK_FILES
from serve.manifest import FusionSpec, Method
from training.evaluation.validation_answers import cross_fitted
from training.improve.case import Case
from training.improve.step import Area, Finding, gain
from training.improve.trials import Unmeasured


@dataclass(frozen=True)
class OtherMethod:
    """Another fusion method in place of the served one."""

    method: Method
    area: Area = "fusion"

    @property
    def name(self) -> str:
        return f"fuse by {self.method.replace('_', ' ')}"

    def measure(self, case: Case) -> Finding:
        answers, served = case.answers, case.ensemble.fusion.method
        if self.method == served:
            raise Unmeasured("the ensemble is fused by it already")
        if len(case.ensemble.members) == 1:
            raise Unmeasured("there is one member")
        if self.method == "vote" and case.criterion == "log_loss":
            raise Unmeasured("the shares of a vote are no probabilities, so they have no log loss")
        model = answers.options.stack_for(case.ensemble.task) if self.method == "stack" else None
        # The file is for serving; here the stacker is fitted anew.
        file = STACK_FILES[model] if model else None
        spec = FusionSpec(method=self.method, model=model, parameters=file)
        other = case.ensemble.model_copy(update={"fusion": spec})
        try:
            after = cross_fitted(
                other, answers.options, answers.outputs, answers.truth, answers.folds
            )
        except FusionError as error:
            raise Unmeasured(str(error)) from error
        return Finding(
            area=self.area,
            step=self.name,
            compared=f"the ensemble, now fused by {served.replace('_', ' ')}",
            gain=gain(case.criterion, answers.served, after, answers.truth),
            minutes=0.0,
        )


@dataclass(frozen=True)
class FewerMembers:
    """The ensemble without the member that it is best without."""

    area: Area = "fusion"
    name: str = "leave a member out"

    def measure(self, case: Case) -> Finding:
        answers, members = case.answers, case.ensemble.members
        if len(members) == 1:
            raise Unmeasured("there is one member")
        gains = [
            gain(case.criterion, answers.served, answers.without(place), answers.truth)
            for place in range(len(members))
        ]
        best = max(range(len(members)), key=lambda place: gains[place].value)
        # The best of several choices looks good by chance more often than one choice does (Bonferroni).
        p = min(1.0, gains[best].p * len(members))
        return Finding(
            area=self.area,
            step=f"leave {members[best].name} out",
            compared=f"the ensemble without one of {len(members)}, the best choice",
            gain=gains[best].model_copy(update={"p": p}),
            minutes=0.0,
        )


@dataclass(frozen=True)
class MoreMembers:
    """What the last member has added: about what one more of its kind would."""

    area: Area = "fusion"
    name: str = "one more member"

    def measure(self, case: Case) -> Finding:
        answers, count = case.answers, len(case.ensemble.members)
        if count < 3:
            raise Unmeasured("it takes three members to see what one more adds")
        places = range(count)
        pairs = [answers.of([each for each in places if each != left]) for left in places]
        gains = [gain(case.criterion, smaller, answers.served, answers.truth) for smaller in pairs]
        middle = sorted(gains, key=lambda each: each.value)[count // 2]
        return Finding(
            area=self.area,
            step=self.name,
            compared=f"{count} members with {count - 1}, the middle one of {count} choices",
            gain=middle,
            minutes=case.member_minutes,
        )
