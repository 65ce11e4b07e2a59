"""Turns a request for a swap into a verified candidate, or refuses it with the reason."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serve.adapter import (
    AdapterError,
    AdapterInfo,
    AdapterKind,
    check_together,
    inspect_adapter,
)
from serve.bundle import Bundle, BundleError
from serve.control.admission.fusion_fit import fit_digests
from serve.control.admission.new_name import empty_version
from serve.control.admission.pools import Pools
from serve.control.admission.provenance import origins_after
from serve.control.admission.refit import Fit, StaleFit, settle
from serve.control.artifacts.sources import Missing, NotAllowed, Sources
from serve.control.artifacts.staging import Staging
from serve.control.artifacts.store import Store, StoreError
from serve.control.clock import now
from serve.control.records import EnsembleRecord, VersionRecord
from serve.errors import RefusedError, did_you_mean
from serve.fusion.answers import MEMBER_SCORES, member_scores
from serve.fusion.errors import FusionError, StaleFusionError
from serve.fusion.fuse import Fusion
from serve.fusion.parameters import read_parameters
from serve.fusion.ranking.ranker import Ranker
from serve.fusion.selective.record import fits_in
from serve.manifest import AdapterRef, Ensemble, Member, Task, adapter_name, explain
from serve.protocol.requests import ADAPTER_MISSING, SwapRequest
from serve.protocol.strategy import Strategy

LISTED = 20
"""How many of the newest versions an error lists."""


class Admission:
    """Builds and verifies versions. All methods block on files, so they run in threads."""

    def __init__(self, store: Store, sources: Sources, pools: Pools) -> None:
        self._store = store
        self._sources = sources
        self._pools = pools

    def candidate(self, record: EnsembleRecord, request: SwapRequest, actor: str) -> VersionRecord:
        """The version that a request asks for: a known one, or a new one with the next number. Its adapters are in the
        store and have passed all checks.

        Content that an earlier version has too makes a new version nevertheless. Raises RefusedError."""
        if request.expected_version not in (None, record.active):
            raise RefusedError(
                409,
                f"The active version of {record.name} is {record.active}, not "
                f"{request.expected_version}; look at what has changed, and ask again.",
                "version_conflict",
                "expected_version",
            )
        check_gates(record.active_version.ensemble.task, request.strategy)
        if record.empty and request.strategy.kind != "immediate":
            raise RefusedError(
                400,
                f"{record.name} has no adapter yet that a new one could be compared with: leave 'strategy' out.",
                param="strategy",
            )
        if request.version is not None:
            return self._known(record, request.version)
        try:
            return self._new(record, request, actor)
        except NotAllowed as error:
            raise RefusedError(403, str(error), "source_not_allowed", "members") from error
        except Missing as error:
            raise RefusedError(400, str(error), ADAPTER_MISSING, "members") from error
        except (StoreError, BundleError) as error:
            raise RefusedError(400, str(error)) from error

    def _new(self, record: EnsembleRecord, request: SwapRequest, actor: str) -> VersionRecord:
        """Build a new version. Its files enter the store once all checks have passed, so that a refused request leaves
        nothing behind. Raises RefusedError, StoreError and BundleError."""
        allow = request.allow_stale_fusion
        with Staging(self._store) as staging:
            if request.manifest is not None:
                # The administrator wants this fusion, so it is checked and never changed.
                fit = Fit(self._from_manifest(record, request.manifest), None)
                parameters = self._parameters_of(fit.ensemble)
                self._check_adapters(fit.ensemble)
            else:
                active = record.active_version
                ensemble = self._with_members(record, request.members or {}, staging)
                parameters = self._stored_parameters(active)
                self._check_adapters(ensemble, arrived=staging.digests)
                fit = self._settle(ensemble, parameters, fit_digests(active), allow=allow)
            if fit.refitted:
                parameters = None
                if fit.parameters is not None:
                    parameters = staging.scratch() / "stacker"
                    fit.parameters.write(parameters)
            stale = self._check_fusion(fit.ensemble, parameters, allow=allow) or fit.stale_numbers
            staging.keep()
            kept = self._store.keep_parameters(parameters) if parameters else None
        at = now()
        origins = origins_after(record, request, fit.ensemble, self._pools.bundles, actor, at)
        return VersionRecord(fit.ensemble, actor, at, kept, stale, fit.fitted_on, origins)

    def empty(self, name: str) -> VersionRecord:
        """See `new_name.empty_version`."""
        return empty_version(name, self._pools)

    def check_known(self, record: VersionRecord) -> None:
        """Check a version of the database. Adapters that the store has lost are copied from the bundles again. Raises
        RefusedError, StoreError and BundleError."""
        self._check_adapters(record.ensemble)
        if record.parameters is not None:
            self._store.verify_parameters(record.parameters)
        file = self._stored_parameters(record)
        self._check_fusion(record.ensemble, file, allow=record.allow_stale_fusion)

    def _check_adapters(self, ensemble: Ensemble, arrived: Collection[str] = ()) -> None:
        """Check the adapters of an ensemble: digest, format, values, rank, and whether they fit the base, the labels
        and each other. Adapters that have just `arrived` have been checked already. Raises RefusedError, StoreError and
        BundleError."""
        most = self._pools.of(ensemble.name).limits.max_members
        if len(ensemble.members) > most:
            raise RefusedError(
                400,
                f"{ensemble.id} has {len(ensemble.members)} members; at most {most} are taken "
                "(CHOIR_MAX_MEMBERS).",
                param="manifest.members",
            )
        for member in ensemble.members:
            kinds = []
            for ref in member.adapters:
                if ref.digest in arrived:
                    continue
                self._find(ref)
                self._store.verify(ref.digest)
                folder = self._store.adapter(ref.digest)
                kinds.append(self._inspect(folder, member.name, ensemble).kind)
            self._check_together(kinds, member.name)

    def import_adapter(self, bundle: Bundle, ref: AdapterRef) -> None:
        """Copy a bundle's adapter into the store unless it is there. Raises StoreError and BundleError."""
        if not self._store.has_adapter(ref.digest):
            with self._store.scratch() as copy:
                self._sources.copy(bundle.adapter_dir(ref), copy)
                self._store.keep(copy, ref.digest)

    def earlier(self, record: EnsembleRecord, to: int | None) -> VersionRecord:
        """The version that a rollback returns to: `to`, or the one that was active before. Raises RefusedError."""
        if not record.previous:
            raise RefusedError(
                409,
                f"{record.name}@{record.active} has no version before it to go back to.",
                "no_earlier_version",
            )
        version = record.previous[-1] if to is None else to
        if version in record.versions and version not in (*record.previous, record.active):
            raise RefusedError(
                409,
                f"{record.name}@{version} was not active before; swap to it with its version "
                "instead.",
                "no_earlier_version",
                "to",
            )
        return self._known(record, version)

    def _known(self, record: EnsembleRecord, version: int) -> VersionRecord:
        if version not in record.versions:
            shown = [str(each.ensemble.version) for each in record.newest(LISTED)]
            rest = len(record.versions) - len(shown)
            known = ", ".join(shown) + (f" and {rest} more" if rest else "")
            raise RefusedError(
                404, f"{record.name} has no version {version}; it has {known}.", "unknown_version"
            )
        if version == record.active:
            raise RefusedError(409, f"{record.name}@{version} is active already.", "already_active")
        found = record.versions[version]
        try:
            self.check_known(found)
        except (StoreError, BundleError) as error:
            raise RefusedError(400, str(error)) from error
        return found

    def _with_members(
        self,
        record: EnsembleRecord,
        changes: Mapping[str, str | list[str]],
        staging: Staging,
    ) -> Ensemble:
        ensemble = record.active_version.ensemble
        names = [member.name for member in ensemble.members]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise RefusedError(
                400,
                f"{ensemble.id} has no member {unknown[0]!r}; its members are {', '.join(names)}."
                f"{did_you_mean(unknown[0], names)}",
                param="members",
            )
        # Scores were measured with the old content. What stays: the fits, on which `settle` decides, and those of the
        # members that stay, by which ties among whole answers are broken.
        kept = {
            name: score for name, score in member_scores(ensemble).items() if name not in changes
        }
        scores = fits_in(ensemble) | ({MEMBER_SCORES: kept} if kept else {})
        members = [
            self._changed(member, changes[member.name], ensemble, staging)
            if member.name in changes
            else member
            for member in ensemble.members
        ]
        return ensemble.model_copy(
            update={"version": record.highest + 1, "members": members, "scores": scores}
        )

    def _changed(
        self, member: Member, uris: str | list[str], ensemble: Ensemble, staging: Staging
    ) -> Member:
        """The member with new adapters. An adapter keeps its name; its digest is another one."""
        several = [uris] if isinstance(uris, str) else uris
        adapters: list[AdapterRef] = []
        kinds: list[AdapterKind] = []
        for place, uri in enumerate(several):
            copy = staging.scratch()
            self._sources.fetch(uri, copy)
            found = self._inspect(copy, member.name, ensemble)
            kinds.append(found.kind)
            self._check_together(kinds, member.name)
            staging.add(copy, found.digest)
            known = member.adapters[place : place + 1]
            name = known[0].adapter if known else adapter_name(member.name, place)
            adapters.append(AdapterRef(adapter=name, digest=found.digest))
        return member.model_copy(update={"adapters": adapters})

    def _from_manifest(self, record: EnsembleRecord, manifest: Mapping[str, Any]) -> Ensemble:
        try:
            ensemble = Ensemble.model_validate(
                {"name": record.name, **manifest, "version": record.highest + 1}
            )
            text = json.dumps(manifest, allow_nan=False)
        except ValidationError as error:
            raise RefusedError(400, f"manifest: {explain(error)}.", param="manifest") from error
        except ValueError as error:
            raise RefusedError(400, f"manifest: {error}.", param="manifest") from error
        if r"\u0000" in text:
            raise RefusedError(
                400, "manifest: it holds a NUL character, which cannot be stored.", param="manifest"
            )
        if ensemble.name != record.name:
            raise RefusedError(
                400,
                f"The manifest's name is {ensemble.name!r}, but the swap is of {record.name!r}.",
                param="manifest.name",
            )
        return ensemble

    def _find(self, ref: AdapterRef) -> None:
        """Make sure that the store has an adapter, if need be from a bundle. Raises RefusedError and StoreError."""
        if self._store.has_adapter(ref.digest):
            return
        for bundle in self._pools.bundles:
            try:
                self.import_adapter(bundle, ref)
            except BundleError:
                continue
            return
        raise RefusedError(
            400,
            f"The adapter {ref.adapter} with the digest {ref.digest} is neither in the store nor "
            "in a bundle; swap it in by its URI.",
            "adapter_not_found",
        )

    def _stored_parameters(self, record: VersionRecord) -> Path | None:
        return None if record.parameters is None else self._store.parameters(record.parameters)

    def _parameters_of(self, ensemble: Ensemble) -> Path | None:
        """The file of fitted parameters that a new manifest names, from the first bundle that has it; None if it names
        none. Raises RefusedError."""
        if ensemble.fusion.parameters is None:
            return None
        reason: BundleError | None = None
        for bundle in self._pools.of(ensemble.name).bundles:
            try:
                file = bundle.fusion_path(ensemble)
            except BundleError as error:
                reason = error
                continue
            if file is not None:
                return file
        raise RefusedError(400, str(reason), param="manifest.fusion.parameters")

    def _settle(
        self,
        ensemble: Ensemble,
        file: Path | None,
        fitted_on: Mapping[str, list[str]] | None,
        *,
        allow: bool,
    ) -> Fit:
        """The fusion of a version with other adapters. Raises RefusedError and BundleError."""
        model, bundles = ensemble.fusion.model, self._pools.of(ensemble.name).bundles
        try:
            fitted = None
            if model is not None and file is not None:
                fitted = read_parameters(file, model, ensemble.task)
            return settle(Fit(ensemble, fitted, fitted_on), bundles, allow=allow)
        except FusionError as error:
            raise RefusedError(400, str(error)) from error
        except StaleFit as error:
            raise RefusedError(400, str(error), "stale_fusion", "allow_stale_fusion") from error

    def _check_fusion(self, ensemble: Ensemble, file: Path | None, *, allow: bool) -> bool:
        """Check the fusion. Returns whether it uses parameters that were fitted on other adapters. Raises
        RefusedError."""
        try:
            if ensemble.task == "generation":
                ranker = Ranker.from_manifest(ensemble, file, allow_stale=allow)
                return ranker is not None and ranker.is_stale(ensemble)
            return Fusion.from_manifest(ensemble, file, allow_stale=allow).stale
        except FusionError as error:
            code = "stale_fusion" if isinstance(error, StaleFusionError) else None
            raise RefusedError(
                400, str(error), code, "allow_stale_fusion" if code else None
            ) from error

    def _inspect(self, folder: Path, member: str, ensemble: Ensemble) -> AdapterInfo:
        """Check an adapter, and describe it. Raises RefusedError."""
        limits = self._pools.of(ensemble.name).limits
        try:
            return inspect_adapter(
                folder,
                base=limits.base_path,
                max_rank=limits.max_lora_rank,
                base_kind=limits.base_kind,
                head_rows=ensemble.head_rows,
            )
        except AdapterError as error:
            raise RefusedError(
                400,
                f"The adapter for member {member!r} is refused: {error}",
                "adapter_refused",
                f"members.{member}",
            ) from error

    @staticmethod
    def _check_together(kinds: Sequence[AdapterKind], member: str) -> None:
        try:
            check_together(kinds)
        except AdapterError as error:
            raise RefusedError(
                400,
                f"The member {member!r} is refused: {error}",
                "adapter_refused",
                f"members.{member}",
            ) from error


def check_gates(task: Task, strategy: Strategy) -> None:
    """Raises RefusedError for a gate that the task could never pass."""
    if task == "regression" and strategy.gates.min_agreement is not None:
        raise RefusedError(
            400,
            "min_agreement compares labels or texts, and the ensemble answers values, which never quite agree; leave "
            "it out.",
            param="strategy.gates.min_agreement",
        )


def adapters_of(ensembles: Iterable[Ensemble]) -> Iterator[AdapterRef]:
    """All references to adapters, in order."""
    for ensemble in ensembles:
        for member in ensemble.members:
            yield from member.adapters
