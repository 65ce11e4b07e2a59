"""Steps of the fusion: another method, a member less, or one more. No member is trained for them."""

from dataclasses import dataclass

from serve.manifest import Method
from training.improve.case import Case
from training.improve.judged import Unmeasured
from training.improve.step import Area, Finding, gain


@dataclass(frozen=True)
class OtherMethod:
    """Another fusion method in place of the served one."""

    method: Method
    area: Area = "fusion"

    @property
    def name(self) -> str:
        return f"fuse by {self.method.replace('_', ' ')}"

    def measure(self, case: Case) -> Finding:
        judged, served = case.judged, case.ensemble.fusion.method
        if self.method == served:
            raise Unmeasured("the ensemble is fused by it already")
        if len(case.ensemble.members) == 1:
            raise Unmeasured("there is one member")
        return Finding(
            area=self.area,
            step=self.name,
            compared=f"the ensemble, now fused by {served.replace('_', ' ')}",
            gain=gain(judged, judged.served, judged.by(self.method)),
            minutes=0.0,
        )


@dataclass(frozen=True)
class FewerMembers:
    """The ensemble without the member that it is best without."""

    area: Area = "fusion"
    name: str = "leave a member out"

    def measure(self, case: Case) -> Finding:
        judged, members = case.judged, case.ensemble.members
        if len(members) == 1:
            raise Unmeasured("there is one member")
        places = range(len(members))
        gains = [
            gain(judged, judged.served, judged.of([each for each in places if each != left]))
            for left in places
        ]
        best = max(places, key=lambda place: gains[place].value)
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
        judged, count = case.judged, len(case.ensemble.members)
        if count < 3:
            raise Unmeasured("it takes three members to see what one more adds")
        places = range(count)
        smaller = [judged.of([each for each in places if each != left]) for left in places]
        gains = [gain(judged, each, judged.served) for each in smaller]
        middle = sorted(gains, key=lambda each: each.value)[count // 2]
        return Finding(
            area=self.area,
            step=self.name,
            compared=f"{count} members with {count - 1}, the middle one of {count} choices",
            gain=middle,
            minutes=case.member_minutes,
        )
