"""Model names, and the versions and members that answer them."""

import pytest

from serve.agents.routes import Routes, UnknownModel
from serve.engine.interface import Version
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member
from serve.protocol.messages import AssignedVersion, Desired, Role


def routes(**roles: Role) -> Routes:
    """`intents_2="active"` and the like."""
    versions = []
    for name, role in roles.items():
        ensemble, _, number = name.partition("_")
        digest = "sha256:" + "0" * 64
        manifest = Ensemble(
            format=1,
            name=ensemble,
            version=int(number),
            task="classification",
            members=[Member(name="a", adapters=[AdapterRef(adapter="x", digest=digest)])],
            fusion=FusionSpec(method="average"),
            labels=["yes", "no"],
        )
        versions.append(AssignedVersion(Version(manifest, {}), role))
    return Routes.of(Desired(1, 1.0, tuple(versions), ready_engines={"": 1}))


def test_all_forms_of_a_name() -> None:
    known = routes(intents_1="warm", intents_2="active", topics_1="active")
    expected = {
        "intents": ("intents@2", "stable"),
        "intents/a": ("intents@2/a", "stable"),
        "intents@2": ("intents@2", "pinned"),
        "intents@2/a": ("intents@2/a", "pinned"),
        "intents@1": ("intents@1", "pinned"),
        "intents@1/a": ("intents@1/a", "pinned"),
        "topics": ("topics@1", "stable"),
        "topics/a": ("topics@1/a", "stable"),
        "topics@1": ("topics@1", "pinned"),
        "topics@1/a": ("topics@1/a", "pinned"),
    }
    found = {name: (target.model, target.track) for name, target in known.models().items()}
    assert found == expected
    target = known.resolve("intents/a")
    assert (target.key, target.member) == ("intents@2", "a")


@pytest.mark.parametrize("role", ["candidate", "draining"])
def test_candidates_and_draining_versions_have_no_route(role: Role) -> None:
    known = routes(intents_2="active", intents_3=role)
    with pytest.raises(UnknownModel, match="intents@3 is not loaded; of intents, intents@2 can be"):
        known.resolve("intents@3")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nothing", "no model 'nothing'; there are intents"),
        ("", "no model ''; there are intents"),
        ("intents/z", "intents has no member 'z'; its members are a"),
        ("intents@2/z", "intents@2 has no member 'z'"),
        ("nothing@1", "no model 'nothing@1'"),
        ("INTENTS", "no model 'INTENTS'"),
    ],
)
def test_the_error_for_an_unknown_name_lists_the_known_names(model: str, says: str) -> None:
    with pytest.raises(UnknownModel, match=says):
        routes(intents_2="active").resolve(model)


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("intent", "'intents'"),
        ("INTENTS", "'intents'"),
        ("intent@2", "'intents@2'"),
        ("intent/a", "'intents/a'"),
        ("intent@2/a", "'intents@2/a'"),
        ("intent@7", "'intents'"),
        ("intents/A", "'a'"),
        ("nothing", None),
    ],
)
def test_a_name_that_was_probably_meant_is_suggested(model: str, meant: str | None) -> None:
    with pytest.raises(UnknownModel) as caught:
        routes(intents_2="active").resolve(model)
    suggested = str(caught.value).partition("Did you mean ")[2]
    assert suggested == ("" if meant is None else f"{meant}?")


def test_the_error_for_an_unknown_name_stays_short() -> None:
    many = routes(**{f"e{number}_1": "active" for number in range(100)})
    with pytest.raises(UnknownModel) as caught:
        many.resolve("x" * 100_000)
    assert len(str(caught.value)) < 500
    assert "80 more" in str(caught.value)
