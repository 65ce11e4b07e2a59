"""The engine: one vLLM instance that holds adapters and answers for whole ensembles."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from serve import labels, metrics
from serve.adapter import AdapterError, Head
from serve.base.side_files import read_tokenizer
from serve.engine.adapters.invocations import refuse_invocations
from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.adapters.pool import AdapterPool
from serve.engine.adapters.slot_queue import SlotQueue
from serve.engine.core_process.death import answered, death_of, streamed
from serve.engine.core_process.start_failure import explained
from serve.engine.generation.client import GenerationContext, MemberRun
from serve.engine.generation.openai_routes import OpenAIRoutes
from serve.engine.generation.refusals import call_fusion, generation_refusal
from serve.engine.generation.serving_arguments import serving_arguments
from serve.engine.interface import (
    MEMBER_FAILED,
    TOKEN_ROUTES,
    EmbedCall,
    Embeddings,
    EngineSettings,
    EngineState,
    GenerateCall,
    NoRoomError,
    PredictCall,
    Prediction,
    PrepareError,
    Probe,
    Text,
    Version,
)
from serve.engine.limits.deadline import in_time, parts_in_time
from serve.engine.limits.fair_queue import BATCHES, CallQueue, FairQueue
from serve.engine.loaded import (
    LoadedVersion,
    absent_refusal,
    degraded,
    fitted_parts,
    members_of,
    not_loaded,
    refuse_group,
    without_absent,
)
from serve.engine.scoring.embedding import NO_VECTORS, Embedder
from serve.engine.scoring.heads import EncoderPooler, read_head, refuse_mixed
from serve.engine.scoring.prediction import MemberScores, predicted
from serve.engine.scoring.probe import Prober
from serve.engine.scoring.prompted import prompted_heads
from serve.engine.scoring.template_scorer import TemplateScorer
from serve.engine.vllm_hooks.arguments import check_vllm_version, engine_args, engine_config
from serve.errors import Refusal
from serve.fusion.errors import FusionError, OutputError
from serve.logs.events import tell_phase
from serve.manifest import Ensemble, Member
from serve.prompting.reader import PromptReader
from serve.servable import unserved_ensemble
from serve.together import together

logger = logging.getLogger(__name__)


class VLLMEngine:
    """Implements `interface.Engine`."""

    def __init__(
        self,
        llm: AsyncLLM,
        settings: EngineSettings,
        tokenizer: Any,
        prober: Prober,
        openai: OpenAIRoutes | None,
    ) -> None:
        self._llm = llm
        self._settings = settings
        self._slots = settings.adapter_slots
        self._capacity = settings.host_adapters or settings.adapter_slots
        self._adapters = AdapterPool(llm, settings, PromptReader(tokenizer))
        self._slot_queue = SlotQueue(self._slots)
        self._queue = FairQueue(BATCHES * llm.vllm_config.scheduler_config.max_num_seqs)
        self._prober = prober
        self._openai = openai
        own = (llm, tokenizer, settings.images)
        causal = settings.kind == "causal"
        self._causal = TemplateScorer(*own, self._adapters.reader) if causal else None
        self._encoder = None if causal else EncoderPooler(*own)
        self._embedder = Embedder(self._encoder, settings) if self._encoder else None
        self._versions: dict[str, LoadedVersion] = {}
        self._preparing = asyncio.Lock()

    @classmethod
    async def start(cls, settings: EngineSettings) -> "VLLMEngine":
        """Loads the base and warms it up, so that the first request is as fast as the second.

        Raises EngineSettingError for arguments that cannot be used, and EngineStartError if the start fails."""
        check_vllm_version()
        serving = serving_arguments(settings.model, settings.chat)
        args = engine_args(
            model=settings.model,
            revision=settings.revision,
            kind=settings.kind,
            dtype=settings.dtype,
            adapter_slots=settings.adapter_slots,
            host_adapters=settings.host_adapters or settings.adapter_slots,
            max_lora_rank=settings.max_lora_rank,
            given=settings.arguments,
            share=settings.share,
            reasoning_parser=serving.structured_outputs_config.reasoning_parser,
        )
        tell_phase(logger, "Loading the base")
        with explained():
            llm = AsyncLLM.from_vllm_config(
                engine_config(args), disable_log_stats=args.disable_log_stats
            )
            tell_phase(logger, "Warming up")
            tokenizer = read_tokenizer(settings.model, settings.revision)
            prober = await Prober.create(llm, settings.kind, tokenizer)
            openai = None
            if settings.kind == "causal":
                openai = await OpenAIRoutes.create(llm, serving, tokenizer, settings.images)
        return cls(llm, settings, tokenizer, prober, openai)

    async def prepare(self, version: Version) -> tuple[Probe, ...]:
        """See `interface.Engine`."""
        async with self._preparing:
            if version.key not in self._versions:
                self._versions[version.key] = await self._load(version)
                absent = len(self._versions[version.key].absent)
                metrics.ensemble_loaded(version.ensemble.name, version.ensemble.version)
                metrics.members_absent(version.ensemble.name, version.ensemble.version, absent)
                self._update_adapter_metrics()
        try:
            return await self._probe(version.key)
        except BaseException:
            await self.release(version.key)
            raise

    async def _load(self, version: Version) -> LoadedVersion:
        ensemble = version.ensemble
        if (unserved := unserved_ensemble(ensemble, self._settings.kind)) is not None:
            raise PrepareError(unserved)
        if self._causal is not None:
            self._causal.check_template(ensemble.template)
        acquired: list[str] = []
        heads: dict[str, Head] = {}
        absent: dict[str, PrepareError] = {}
        try:
            for member in ensemble.members:
                try:
                    await self._load_member(member, version, acquired, heads)
                except NoRoomError:
                    raise  # nothing is wrong with the member: the caller makes room and tries again
                except PrepareError as error:
                    if ensemble.on_member_error == "fail":
                        raise
                    logger.error(
                        "%s is loaded without the member %s: %s", version.key, member.name, error
                    )
                    absent[member.name] = error
            ensemble = degraded(ensemble, absent)
            loras = self._loras(ensemble)
            sequences = self._llm.vllm_config.scheduler_config.max_num_seqs
            refuse_group(ensemble, loras, self._slots, sequences)
            own = [self._member_adapters(member) for member in ensemble.members]
            if self._encoder is not None and ensemble.prompts:
                async with self._slot_queue.turn(loras):
                    heads |= await prompted_heads(self._encoder, ensemble, own, self._adapters)
            refuse_mixed(heads)
            refuse_invocations(ensemble, own, self._adapters.reader)
            fusion, ranker = fitted_parts(version, ensemble)
        except BaseException as error:
            for digest in acquired:
                await self._adapters.release(digest)
            if isinstance(error, FusionError):
                raise PrepareError(str(error)) from error
            raise
        return LoadedVersion(version, ensemble, tuple(absent), fusion, heads, loras, ranker)

    async def _load_member(
        self, member: Member, version: Version, acquired: list[str], heads: dict[str, Head]
    ) -> None:
        """Loads the member's adapters, and appends their digests to `acquired`. Raises PrepareError if one of them
        cannot be loaded; then none of them stays acquired."""
        taken: list[str] = []
        try:
            for reference in member.adapters:
                folder = version.adapters[reference.digest]
                if self._encoder is not None:
                    base = await asyncio.to_thread(self._adapters.base_shapes)
                    given = Path(folder), member, version.ensemble, base
                    heads |= await asyncio.to_thread(read_head, *given)
                await self._adapters.acquire(reference.adapter, reference.digest, folder)
                taken.append(reference.digest)
            self._member_adapters(member)
        except BaseException as error:
            for digest in taken:
                await self._adapters.release(digest)
            if isinstance(error, AdapterError):
                raise PrepareError(f"Member {member.name!r}: {error}") from error
            raise
        acquired += taken

    def _loras(self, ensemble: Ensemble) -> frozenset[str]:
        """Returns the digests of the ensemble's LoRAs."""
        alone = self._adapters.alone
        return frozenset(each for each in ensemble.digests if alone(each).lora is not None)

    async def _probe(self, key: str) -> tuple[Probe, ...]:
        loaded = self._versions[key]
        alone = [(digest, self._adapters.alone(digest)) for digest in loaded.ensemble.digests]
        async with self._slot_queue.turn(loaded.loras):
            return tuple(await together(self._prober.probe(*each) for each in alone))

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        """See `interface.Engine`."""
        return await answered(self._llm, lambda: in_time(call.seconds_left, self._predict(call)))

    async def _predict(self, call: PredictCall) -> Prediction | Refusal:
        loaded = self._versions.get(call.version)
        if loaded is None:
            return not_loaded(call.version)
        if loaded.fusion is None:
            return Refusal(
                400,
                f"The ensemble {loaded.ensemble.name!r} has the task {loaded.ensemble.task}: use /v1/completions or "
                "/v1/chat/completions.",
                param="model",
            )
        if (refusal := absent_refusal(loaded, call.member)) is not None:
            return refusal
        call = replace(call, weights=without_absent(loaded, call.weights))
        async with self._running(loaded):
            try:
                queue = self._queue.for_call()
                ask = partial(self._scores, loaded, queue)
                read = partial(self._encoder.plain, queue) if self._encoder else None
                return await predicted(loaded, call, ask, read)
            except labels.LabelError as error:
                return Refusal(400, str(error), param="input")
            except OutputError as error:
                return Refusal(500, f"{call.version} cannot answer this: {error}", MEMBER_FAILED)
            except FusionError as error:
                return Refusal(400, str(error), param="fusion")

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        """See `interface.Engine`."""
        return await answered(self._llm, lambda: in_time(call.seconds_left, self._embed(call)))

    async def _embed(self, call: EmbedCall) -> Embeddings | Refusal:
        loaded = self._versions.get(call.version)
        if loaded is None:
            return not_loaded(call.version)
        if self._embedder is None:
            return NO_VECTORS
        async with self._running(loaded):
            queue = self._queue.for_call()
            return await self._embedder.embed(loaded, call, self._member_adapters, queue)

    async def _scores(
        self,
        loaded: LoadedVersion,
        queue: CallQueue,
        members: Sequence[Member],
        inputs: Sequence[Text],
    ) -> MemberScores:
        """Returns what members say about inputs. Raises LabelError for inputs that cannot be scored."""
        ensemble = loaded.ensemble
        member_adapters = [self._member_adapters(member) for member in members]
        if self._causal is not None:
            return await self._causal.score(ensemble, inputs, member_adapters, queue)
        assert self._encoder is not None
        heads = [loaded.heads[member.name] for member in members]
        loras = [each.lora for each in member_adapters]
        pooled = await self._encoder.score(inputs, loras, heads, queue)
        read = pooled.prompt_tokens * len(members)
        return MemberScores(pooled.scores, pooled.prompt_tokens, read, read)

    async def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        """See `interface.Engine`."""
        timed = parts_in_time(call.seconds_left, self._generate(call))
        async with aclosing(streamed(self._llm, timed)) as parts:
            async for part in parts:
                yield part

    async def _generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        loaded = self._versions.get(call.version)
        if loaded is None:
            yield not_loaded(call.version)
            return
        call = replace(
            call,
            weights=without_absent(loaded, call.weights),
            prompts=without_absent(loaded, call.prompts),
        )
        refusal = absent_refusal(loaded, call.member) or generation_refusal(
            loaded.ensemble, call, ranked=loaded.ranker is not None
        )
        if refusal is not None or self._openai is None:
            yield refusal or Refusal(
                400,
                "The base is of the kind encoder, and OpenAI's routes are for bases that write: use /v1/predict.",
                param="model",
            )
            return
        async with self._running(loaded):
            answer = self._openai.answer(call, self._generation_context(loaded, call))
            async with aclosing(answer):
                async for part in answer:
                    yield part

    def _generation_context(self, loaded: LoadedVersion, call: GenerateCall) -> GenerationContext:
        members = members_of(loaded.ensemble, call.member)
        limits = map(call.body.get, ("max_tokens", "max_completion_tokens", "max_output_tokens"))
        # Without max_tokens, a completion has 16 tokens, OpenAI's default, and a chat as many as there is room for.
        clamp_max_tokens = call.route != "completions" and all(limit is None for limit in limits)
        fuses = len(members) > 1 and call.route not in TOKEN_ROUTES
        return GenerationContext(
            model=call.model,
            ensemble=loaded.ensemble,
            member_runs=[MemberRun(member, self._member_adapters(member)) for member in members],
            weights=call.weights,
            fusion=call_fusion(loaded.ensemble, call) if fuses else None,
            ranker=loaded.ranker,
            clamp_max_tokens=clamp_max_tokens,
            return_members=call.return_members,
            absent=loaded.absent,
            queue=self._queue.for_call(),
        )

    @asynccontextmanager
    async def _running(self, loaded: LoadedVersion) -> AsyncIterator[None]:
        """Waits for slots, and keeps the version loaded meanwhile and while the request runs."""
        loaded.in_flight += 1
        loaded.idle.clear()
        try:
            async with self._slot_queue.turn(loaded.loras):
                yield
        finally:
            loaded.in_flight -= 1
            if loaded.in_flight == 0:
                loaded.idle.set()

    def _member_adapters(self, member: Member) -> MemberAdapters:
        return self._adapters.member_adapters(member.adapters)

    async def release(self, key: str) -> None:
        """See `interface.Engine`."""
        loaded = self._versions.pop(key, None)
        if loaded is None:
            return
        metrics.ensemble_unloaded(loaded.ensemble.name, loaded.ensemble.version)
        metrics.members_absent(loaded.ensemble.name, loaded.ensemble.version, 0)
        await loaded.idle.wait()
        for member in loaded.ensemble.members:
            for reference in member.adapters:
                await self._adapters.release(reference.digest)
        self._update_adapter_metrics()

    def _update_adapter_metrics(self) -> None:
        metrics.adapters_loaded((a.name, a.digest, a.kind) for a in self._adapters.loaded)

    def state(self) -> EngineState:
        """See `interface.Engine`."""
        return EngineState(
            versions={key: loaded.in_flight for key, loaded in self._versions.items()},
            adapters=self._adapters.loaded,
            adapter_slots=self._slots,
            host_adapters=self._capacity,
            max_lora_rank=self._settings.max_lora_rank,
            sequences=self._queue.load,
        )

    async def check_health(self) -> None:
        """Raises when vLLM's core process is dead."""
        await self._llm.check_health()

    async def death(self) -> None:
        """Returns when vLLM's core process is dead."""
        await death_of(self._llm)

    async def close(self) -> None:
        """See `interface.Engine`."""
        await asyncio.to_thread(self._llm.shutdown)
