"""A captured decode step: one token through a static cache, replayed as one CUDA graph.

Decoded eagerly, a token of a 7B model waits for Python and for a thousand kernel launches.  `FastStep` writes the same
pass over buffers that never move, with each decoder layer compiled, and records it once.  `FastPath` decides for one
model in one activation state (its adapter on, or off) whether such a step answers, and keeps the reason where not.

A step is used only after it has given what the eager pass gives.  Nothing here runs beside an answer: `piece` does one
bounded piece of the building at a time, on the thread that owns the models, when that has nothing else to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..errors import one_line
from ..memory import ModelShape, kv_bytes
from ..units import memory
from .agreement import difference, tolerance
from .device import free_and_total
from .layer_pass import Forward, LayerPasses, layer_pass
from .load import precision_of

START_TOKENS = 512
"""The first step's context; a token attends to all of it, so it is no longer than most chats are."""
EAGER = "eager"
_ROOM = 0.5
"""Share of the free memory that a static cache may take."""
_PROMPT, _POSITIONS = 16, 16
"""Tokens that the comparison begins with, and decodes."""

Run = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """Makes a pass over fixed buffers cheap to repeat; ``name`` is what an answer says decoded it.

    ``compile`` is given `layer_pass`, which runs any layer; where a recorder ``compiles`` not, layers run as they are.
    """

    name: str
    compiles: bool

    def compile(self, forward: Forward) -> Forward: ...
    def capture(self, run: Run) -> Run: ...


class CudaGraphs:
    """Layers compiled by Inductor, or as they are, and the whole pass captured in a CUDA graph.

    Inductor writes the products of one row itself, which its coordinate descent asks for: the GPU's library is slower
    at reading weights for one row than for many.
    Not Inductor's own graphs: those are bound to the thread that compiled, and never made for bitsandbytes' models.
    """

    def __init__(self, compiles: bool) -> None:
        self.compiles = compiles
        self.name = "compiled step, CUDA graph" if compiles else "CUDA graph"

    def compile(self, forward: Forward) -> Forward:
        if not self.compiles:
            return forward
        options: dict[str, Any] = {"coordinate_descent_tuning": True}
        compiled: Forward = torch.compile(forward, fullgraph=True, dynamic=False, options=options)
        return compiled

    def capture(self, run: Run) -> Run:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                logits = run()
        finally:
            torch.cuda.set_stream(stream)  # where capturing failed, torch stays on its own

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay


class FastStep:
    """One model's decode step over a static cache of ``bucket`` tokens, for one row.

    Between `begin` and `end` it belongs to one answer, which fills ``cache`` with its prompt and then calls the step
    with each token: (1,) -> next-token logits (1, 1, vocabulary), which the next call overwrites.
    """

    def __init__(self, model: Any, bucket: int, recorder: Recorder) -> None:
        self.bucket = bucket
        self.busy = False
        config = model.config.get_text_config()
        self.cache = StaticCache(config=config, max_cache_len=bucket)
        self._model = model
        self._recorder = recorder
        self._layers = list(model.get_decoder().layers)
        self._token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        self._slots = torch.arange(bucket, device=model.device)
        self._replay: Run = self._run

    def begin(self) -> None:
        """Empty the cache for an answer; nothing of the former one is left."""
        self.busy = True
        self.cache.reset()

    def end(self) -> None:
        """The answer is over, or was given up."""
        self.busy = False

    def __call__(self, tokens: torch.Tensor) -> CausalLMOutputWithPast:
        self._token.copy_(tokens[:, None])
        return CausalLMOutputWithPast(logits=self._replay())

    def build(self) -> Iterator[str]:
        """Compile layer by layer, capture, compare: one piece per `next()`.  What it yields is why the step may not be
        used; only the last piece may have any.  Layers that are alike share what the first of them was compiled to."""
        tokens, expected = self._eager()
        allowed = tolerance(expected, self._model(input_ids=tokens).logits[0, _PROMPT - 1 :])
        yield ""
        self._prefill(tokens[:, :_PROMPT])
        passes = LayerPasses(self._layers, self.cache, self._recorder.compile(layer_pass))
        layers = len(self._layers) if self._recorder.compiles else 0
        for count in range(1, layers + 1):
            self.cache.reset()
            with passes.first(count):
                self._run()
            yield ""
        self.cache.reset()
        with passes.first(layers):
            self._replay = self._recorder.capture(self._run)
        yield ""
        yield difference(expected, self._logits(tokens), allowed)

    def _run(self) -> torch.Tensor:
        position = self.cache.layers[0].cumulative_length.reshape(1, 1).clone()
        seen = (self._slots <= position)[:, None, None, :]
        logits: torch.Tensor = self._model(
            input_ids=self._token,
            position_ids=position,
            attention_mask=torch.where(seen, 0.0, float("-inf")).to(self._model.dtype),
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        return logits

    def _prefill(self, prompt: torch.Tensor) -> torch.Tensor:
        self.cache.reset()
        logits: torch.Tensor = self._model(input_ids=prompt, past_key_values=self.cache, use_cache=True).logits[0, -1:]
        return logits

    def _eager(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A prompt and what the plain pass says after it: tokens (1, prompt + positions), logits (positions + 1,
        vocabulary)."""
        cache = DynamicCache(config=self._model.config.get_text_config())
        vocabulary = self._model.config.get_text_config().vocab_size
        tokens = torch.arange(1, _PROMPT + 1, device=self._model.device)[None] % vocabulary
        logits = self._model(input_ids=tokens, past_key_values=cache, use_cache=True).logits[0, -1:]
        found = [logits]
        for _ in range(_POSITIONS):
            tokens = torch.cat([tokens, found[-1].argmax(dim=-1)[None]], dim=-1)
            found.append(self._model(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1:])
        return tokens, torch.cat(found)

    def _logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the step says of the same tokens."""
        found = [self._prefill(tokens[:, :_PROMPT])]
        for token in tokens[0, _PROMPT:]:
            found.append(self(token[None]).logits[0].clone())
        return torch.cat(found)


@dataclass(frozen=True)
class Route:
    """How one answer is decoded; ``step`` is free for this answer alone until its `end`."""

    name: str
    step: FastStep | None = None


class FastPath:
    """How one model in one activation state decodes: by a captured step once one is proven, eagerly until then.

    ``activate`` is entered for every pass, as `generate.decode` does.  ``recorders`` are tried in turn: where compiled
    layers fail or differ, the library's own are captured.  Without a CUDA device there are none.
    """

    def __init__(
        self,
        model: Any,
        activate: Callable[[], AbstractContextManager[Any]] = nullcontext,
        recorders: Sequence[Recorder] | None = None,
    ) -> None:
        self._model = model.get_base_model() if isinstance(model, PeftModel) else model
        self._activate = activate
        self._recorders = list(recorders_for(self._model.device) if recorders is None else recorders)
        self._step: FastStep | None = None
        self._name = ""
        self._draft: tuple[FastStep, Iterator[str]] | None = None
        self._bucket = 0
        self._too_large, self._lacking = 0, ""
        self._failed = ""
        self._refused = unsuitable(self._model) if self._recorders else "no CUDA device"
        self.want(START_TOKENS)

    def want(self, tokens: int) -> None:
        """Have a step built for contexts of so many tokens, prompt and answer, if there is none and room for it."""
        bucket = _bucket(tokens)
        if bucket > self._bucket and not self._is_too_large(bucket):
            self._bucket, self._draft = bucket, None

    def prepare(self, tokens: int = START_TOKENS) -> str:
        """Build to the end, now; how an answer of one row and so many tokens will be decoded, and why."""
        self.want(tokens)
        while self.piece():
            pass
        return self._route(1, tokens).name

    def route(self, rows: int, tokens: int) -> Route:
        """How an answer decodes that has so many rows, and tokens at its longest; a step in it has begun."""
        route = self._route(rows, tokens)
        if route.step is not None:
            with torch.inference_mode():
                route.step.begin()
        return route

    def piece(self) -> bool:
        """Do one bounded piece of what is to be built; whether there was any."""
        if self._refused or (self._step is not None and self._step.bucket >= self._bucket):
            return False
        try:
            with torch.inference_mode(), self._activate(), _patient_compiler():
                problem = self._advance()
        except Exception as exc:  # noqa: BLE001 - whatever a compiler raises, answers go on eagerly and say why
            problem = f"the step could not be built: {one_line(f'{type(exc).__name__}: {exc}')}"
        if problem:
            self._give_up(problem)
        return True

    def _give_up(self, problem: str) -> None:
        """Go on with the next recorder, if there is one."""
        self._draft = None
        self._recorders.pop(0)
        if self._recorders:
            self._failed = f" (not compiled: {problem})"
        else:
            self._refused = problem
        with suppress(RuntimeError):  # older torch still counts a capture that failed as under way
            torch.cuda.empty_cache()

    def _advance(self) -> str:
        """One piece; what is wrong with it, if anything."""
        if self._draft is None:
            if lacking := _no_room(self._model, self._bucket):
                self._settle_for_less(lacking)
                return ""
            step = FastStep(self._model, self._bucket, self._recorders[0])
            self._draft = (step, step.build())
        step, pieces = self._draft
        problem = next(pieces, None)
        if problem is None:
            self._step, self._name, self._draft = step, self._recorders[0].name + self._failed, None
        return problem or ""

    def _settle_for_less(self, lacking: str) -> None:
        """The step that is there stays, or the first one is built, for what is shorter."""
        self._too_large, self._lacking = self._bucket, lacking
        self._bucket = self._step.bucket if self._step is not None else START_TOKENS
        if self._is_too_large(self._bucket):
            self._refused = lacking

    def _is_too_large(self, bucket: int) -> bool:
        return bool(self._too_large) and bucket >= self._too_large

    def _route(self, rows: int, tokens: int) -> Route:
        step = self._step
        if step is not None and rows == 1 and tokens <= step.bucket and not step.busy:
            return Route(self._name, step)
        return Route(f"{EAGER} ({self._why(rows, tokens)})")

    def _why(self, rows: int, tokens: int) -> str:
        if rows > 1:
            return f"{rows} rows at once"
        if self._step is not None and tokens <= self._step.bucket:
            return "the compiled step is answering another column"
        if self._is_too_large(_bucket(tokens)):
            return self._lacking
        self.want(tokens)
        return self._refused or f"the compiled step for {self._bucket:,} tokens is being built"


def _bucket(tokens: int) -> int:
    return 1 << (tokens - 1).bit_length()


def recorders_for(device: torch.device) -> tuple[Recorder, ...]:
    """The device's ways to record a step, the fastest first."""
    return (CudaGraphs(compiles=True), CudaGraphs(compiles=False)) if device.type == "cuda" else ()


def unsuitable(model: Any) -> str:
    """Why a model cannot have a step, or nothing."""
    kinds = {type(layer) for layer in StaticCache(config=model.config.get_text_config(), max_cache_len=1).layers}
    if kinds != {StaticLayer}:
        return "its layers do not all attend to the whole context"
    if precision_of(model) == "int8":
        return "its 8-bit products wait for the processor, which no graph can"
    return "" if hasattr(model.get_decoder(), "layers") else "its layers are not in a list"


@contextmanager
def _patient_compiler() -> Iterator[None]:
    """One code serves all models, states and buckets: many compilations of it are no sign of a recompiling loop."""
    limits = {"recompile_limit": 1 << 16, "accumulated_recompile_limit": 1 << 16, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):
        yield


def _no_room(model: Any, bucket: int) -> str:
    """Why a static cache of so many tokens does not fit, or nothing."""
    needed = bucket * kv_bytes(ModelShape.from_config(model.config.get_text_config().to_dict()))
    free, _ = free_and_total()
    if needed <= _ROOM * free:
        return ""
    return f"a static cache of {bucket:,} tokens takes {memory(needed)} and {memory(free)} are free"
