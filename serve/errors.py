"""The root of what the server, training and the command say to a person when something cannot be used.

    UserError
    ├── UsageError            the command line (choir_cli)
    ├── ConfigError           a setting
    ├── EngineSettingError    one of vLLM's engine arguments
    ├── ServerError           the server cannot start, or ends
    ├── StartError            the controller cannot start
    ├── DatabaseError         the durable state
    │   └── Conflict          it has changed meanwhile
    │       └── TakenOver     by a later server
    ├── StoreError            the store of adapters
    │   └── NotAllowed        a place that adapters may not come from
    ├── BundleError           a bundle on disk
    ├── BaseError             the base model
    ├── LabelError            labels under the base's tokenizer
    ├── AdapterError          an adapter's folder
    ├── OriginError           what an adapter says of its base
    ├── PatternError          a regular expression from elsewhere
    ├── SoftError             a prefix or prompt adapter in an engine's worker
    ├── TensorError           a safetensors file
    ├── DigestError           a folder that has no digest
    ├── LocationError         a remote place
    ├── FusionError           inputs, weights or parameters of a fusion
    │   ├── OutputError       a member, or a fitted parameter, gives what is no number
    │   └── StaleFusionError  parameters that were fitted to other adapters
    ├── RecipeError           a recipe, or data that it names
    └── ClusterError          the Ray cluster that trains

The Python client has a tree of its own (`choir_client.exceptions`), because it needs nothing of the server.
"""


class UserError(Exception):
    """Something that a person gave or set up cannot be used. The message is one or more sentences for that person: what
    was wrong, what was expected, what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank; the name of its type where there is none."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


def last_line(error: BaseException) -> str:
    """The last line of an error's message that is not blank, which is where libraries name the cause; the name of its
    type where there is none."""
    return next(
        (line.strip() for line in reversed(str(error).splitlines()) if line.strip()),
        type(error).__name__,
    )
