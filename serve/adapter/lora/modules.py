"""Finds the modules of a base under the names that vLLM and PEFT give them.

A checkpoint may come from a model with a head or without one, and so may an adapter. Over a causal base, the model that
is served is the one with the language model's head. Over an encoder, it is the model without any head. Each module has
one name there. An adapter with another name for it would be loaded without effect.
"""

from functools import cached_property

from serve.base.folder import BaseKind, BaseShapes, pooling_of
from serve.base.two_towers import tower_of, towers_of
from serve.base.vision_language import is_read

_BACKBONES = ("model", "transformer", "gpt_neox", "backbone")
"""The names of the part without the head in causal models."""
_ENCODERS = {
    "albert": "albert",
    "bert": "bert",
    "camembert": "roberta",
    "distilbert": "distilbert",
    "electra": "electra",
    "modernbert": "model",
    "mpnet": "mpnet",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
}
"""The same for encoders, by `model_type`."""
_HEADS = ("classifier", "cls", "decoder", "head", "lm_head", "pooler", "pre_classifier")
"""Parts of a base behind the vectors that heads read. Some are parts of a sequence classifier's head too."""
_OUTPUT = "lm_head"


class Modules:
    """Finds an adapter's modules in a base."""

    def __init__(
        self, base: BaseShapes, kind: BaseKind | None, trained_as: str | None = None
    ) -> None:
        """`kind` is how the base is used; None: as its config.json says. `trained_as`: transformers' class of the model
        that the adapter was trained on, if it says so."""
        self._base = base
        self._causal = pooling_of(base.config) == "last"
        self._by_heads = kind == "encoder" or (kind is None and not self._causal)
        self._stem = _ENCODERS.get(str(base.config.get("model_type")))
        self._towers = towers_of(base.config) is not None
        self._tower = tower_of(trained_as or "")

    def name(self, module: str) -> str | None:
        """Returns the module's name in the model that is served; None if that has no such module."""
        if not self._causal:
            return self._encoders_name(module)
        if self.weight(module) is not None:
            return module
        if self._by_heads and self.weight(f"model.{module}") is not None:
            return f"model.{module}"  # vLLM takes both where it pools
        return None

    def weight(self, module: str) -> str | None:
        """Returns the base's name for the weight of a module that is served; None if there is none."""
        found = self._own.get(module)
        if found is None and not self._causal:
            found = self._own.get(f"{self._stem}.{module}") if self._stem else self._behind(module)
        if found is None and self._causal:
            found = self._own.get(self._without_backbone(module) or "")
        if found is None and module.rpartition(".")[2] == _OUTPUT and self._tied:
            found = next((name for own, name in self._own.items() if _embeds(own)), None)
        if found is None and self._base.text_config is not self._base.config:
            found = self._by_text.get(_of_text(module))
        return found

    def shape(self, module: str) -> tuple[int, ...]:
        """Returns the shape of the weight of a module that is served."""
        weight = self.weight(module)
        assert weight is not None, f"{module} is a name that name() gave"
        return self._base.weights[weight]

    def is_read(self, module: str) -> bool:
        """Returns whether the output of a module that is served reaches an answer. Adapters' own heads read the input
        of the base's heads, so the base's heads do not."""
        if self._by_heads and module.partition(".")[0] in _HEADS:
            return False
        return is_read(self._base.config, module)

    def near(self, module: str) -> str | None:
        """Returns a module that an unknown name may stand for: the same name with one more or one fewer part before it.
        None if there is none."""
        end = f".{module}"
        names = [name for name in self._own if name.endswith(end) or module.endswith(f".{name}")]
        return min(names, key=len) if len(module.split(".")) > 1 and names else None

    def _encoders_name(self, module: str) -> str | None:
        if self._towers:
            return self._name_in_towers(module)
        bare = module.removeprefix(f"{self._stem}.") if self._stem else module
        return bare if self.weight(bare) is not None else None

    def _name_in_towers(self, module: str) -> str | None:
        """Returns the name in a model of two towers, which have layers of the same names: the adapter's own, or behind
        the tower that it was trained on."""
        names = [module] if self._tower is None else [module, f"{self._tower}.{module}"]
        return next((name for name in names if name in self._own), None)

    def _without_backbone(self, module: str) -> str | None:
        """Returns the name in a causal checkpoint that leaves the backbone's name out, as the first GPT-2 ones do."""
        first, _, rest = module.partition(".")
        named = any(name.startswith(f"{first}.") for name in self._own)
        if first not in _BACKBONES or named or rest.partition(".")[0] in _BACKBONES:
            return None
        return rest

    def _behind(self, module: str) -> str | None:
        """Returns the weight of the only module whose name is this one behind one more part."""
        found = [name for own, name in self._own.items() if own.partition(".")[2] == module]
        return found[0] if len(found) == 1 else None

    @property
    def _tied(self) -> bool:
        return bool(self._base.config.get("tie_word_embeddings", True))

    @cached_property
    def _own(self) -> dict[str, str]:
        """Module -> weight, by the checkpoint's names."""
        names = (name for name in self._base.weights if name.endswith(".weight"))
        return {name.removesuffix(".weight"): name for name in names}

    @cached_property
    def _by_text(self) -> dict[str, str]:
        return {_of_text(module): name for module, name in self._own.items()}


def _of_text(module: str) -> str:
    """Returns a name without `model` and `language_model`, or `vision_model` behind `vision_tower`. Models that
    read more than text have the first two in either order, and LLaVAs have the third or, since transformers 5, have it
    not. vLLM takes all of them."""
    parts = [part for part in module.split(".") if part not in ("model", "language_model")]
    return ".".join(parts).replace("vision_tower.vision_model.", "vision_tower.")


def _embeds(module: str) -> bool:
    return module.endswith("embed_tokens")
