"""The one decode loop.  Chat, evaluation and benchmarks all read it.

`decode` is a plain generator that does one forward pass per ``next()`` and times its own pass only, so a scheduler can
step several models in turn on one thread without any of them paying for another.  The library prepares the cache
and the inputs; ``custom_generate=`` hands them to our loop instead of its own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ..config import GenerationSettings
from ..errors import ConfigError, WorkError, one_line
from ..records import AnswerTiming, Finish, GenerationChunk, Message
from .fast_step import EAGER, FastPath, FastStep, Route
from .load import context_length

Activate = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Step:
    """One pass over a batch: the token each row took (None once it has ended), how rows ended, the pass's seconds."""

    tokens: tuple[int | None, ...]
    finish: tuple[Finish | None, ...]
    seconds: float
    logits: torch.Tensor
    """Next-token logits of the first row, shape (vocabulary,), as the model gave them."""
    decode: str
    """How this answer is decoded: `Route.name`."""


def decode(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    settings: GenerationSettings,
    activate: Activate = nullcontext,
    fast: FastPath | None = None,
) -> Generator[Step]:
    """Decode a left-padded batch, one pass per `next()`, until every row has ended.

    ``inputs``: ``input_ids`` and ``attention_mask``, each (rows, tokens).  ``activate`` is entered for each pass alone:
    it switches the adapter of a model that another column shares.  ``fast`` is the same model's in the same state:
    where it has a step, the prompt goes eagerly into the step's cache and the step does every pass after it.
    """
    started = time.perf_counter()
    rows, prompt_tokens = inputs["input_ids"].shape
    route = fast.route(rows, prompt_tokens + settings.max_new_tokens) if fast else Route(EAGER)
    try:
        yield from _decode(model, inputs, settings, activate, route=route, started=started)
    finally:
        if route.step is not None:
            route.step.end()


def _decode(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    settings: GenerationSettings,
    activate: Activate,
    *,
    route: Route,
    started: float,
) -> Generator[Step]:
    alive = [True] * len(inputs["input_ids"])
    with torch.inference_mode(), activate():
        stops = stop_ids(model)
        passes = model.generate(
            **{name: tensor.to(model.device) for name, tensor in inputs.items()},
            **({"past_key_values": route.step.cache} if route.step else {}),
            generation_config=_generation_config(model, settings),
            custom_generate=_passes,
            draw=_sampler(model, settings),
            step=route.step,
        )
    for count in range(1, settings.max_new_tokens + 1):
        with torch.inference_mode(), activate():
            started = started or time.perf_counter()
            tokens, logits = next(passes)
            _synchronize(model.device)
            seconds, started = time.perf_counter() - started, 0.0
        finish = [_finish(token, stops, count == settings.max_new_tokens) for token in tokens]
        yield Step(
            tuple(token if live else None for token, live in zip(tokens, alive, strict=True)),
            tuple(how if live else None for how, live in zip(finish, alive, strict=True)),
            seconds,
            logits,
            route.name,
        )
        alive = [live and how is None for live, how in zip(alive, finish, strict=True)]
        if not any(alive):
            return


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Message],
    settings: GenerationSettings,
    activate: Activate = nullcontext,
    *,
    fast: FastPath | None = None,
) -> Generator[GenerationChunk]:
    """Answer one conversation, one chunk per forward pass.  The last chunk has its ``finish`` set."""
    started = time.perf_counter()
    inputs = encode(tokenizer, [conversation])
    prompt_tokens = inputs["input_ids"].shape[1]
    check_length(model, prompt_tokens, settings)
    preparation = time.perf_counter() - started
    ids: list[int] = []
    text = shown = fingerprint = ""
    with closing(decode(model, inputs, settings, activate, fast)) as steps:
        for step in steps:
            if step.tokens[0] is not None:
                ids.append(step.tokens[0])
            fingerprint = fingerprint or fingerprint_of(step.logits)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            finish = step.finish[0]
            whole = text if finish or not text.endswith("\ufffd") else shown
            yield GenerationChunk(
                text=whole[len(shown) :],
                token_ids=tuple(ids),
                prompt_tokens=prompt_tokens,
                seconds=step.seconds + preparation,
                finish=finish,
                fingerprint=fingerprint,
                decode=step.decode,
            )
            shown, preparation = whole, 0.0


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    settings: GenerationSettings,
    activate: Activate = nullcontext,
) -> list[str]:
    """Answer a batch of conversations together; for scores, where no single answer's latency matters."""
    inputs = encode(tokenizer, conversations)
    check_length(model, inputs["input_ids"].shape[1], settings)
    ids: list[list[int]] = [[] for _ in conversations]
    for step in decode(model, inputs, settings, activate):
        for row, token in zip(ids, step.tokens, strict=True):
            if token is not None:
                row.append(token)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids]


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], answered: bool = False
) -> dict[str, torch.Tensor]:
    """Chat messages -> left-padded ``input_ids`` and ``attention_mask``, ready for the assistant's turn, or with it in
    place where the conversations are `answered`."""
    try:
        encoded: Any = tokenizer.apply_chat_template(
            [list(conversation) for conversation in conversations],
            add_generation_prompt=not answered,
            return_tensors="pt",
            return_dict=True,
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
    except (TemplateError, TypeError, UnicodeError) as exc:  # no system prompt, say, or half a character
        why = one_line(exc)
        raise ConfigError("prompt", f"the model's chat template does not take this conversation ({why})") from exc
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def check_length(model: PreTrainedModel, prompt_tokens: int, settings: GenerationSettings) -> None:
    """Refuse a prompt that leaves no room for the answer in the model's context."""
    longest = context_length(model)
    if prompt_tokens + settings.max_new_tokens > longest:
        raise ConfigError(
            "prompt",
            f"{prompt_tokens} tokens and an answer of up to {settings.max_new_tokens} exceed the model's context of "
            f"{longest}; shorten the prompt, clear the conversation or lower max_new_tokens",
        )


def stop_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The tokens that end an answer, as the model says now."""
    ids = model.generation_config.eos_token_id
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)


def warm_up(model: PreTrainedModel, activate: Activate = nullcontext) -> float:
    """Two passes that pay first-use costs (repacking, kernels), so that no answer's timing holds them; seconds."""
    started = time.perf_counter()
    ids = torch.ones((1, 8), dtype=torch.long)
    settings = GenerationSettings(max_new_tokens=2)
    with suppress(WorkError):  # its answers say so, in their own column
        for _ in decode(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, settings, activate):
            pass
    return time.perf_counter() - started


def add_pass(timing: AnswerTiming, chunk: GenerationChunk) -> AnswerTiming:
    """An answer's timing after one more of its own passes."""
    return AnswerTiming(
        prompt_tokens=chunk.prompt_tokens,
        new_tokens=len(chunk.token_ids),
        ttft_seconds=timing.ttft_seconds or chunk.seconds,
        total_seconds=timing.total_seconds + chunk.seconds,
        passes=(*timing.passes, chunk.seconds) if timing.new_tokens else (),
    )


def fingerprint_of(logits: torch.Tensor) -> str:
    """Eight hex digits over the exact bytes of a logits vector: other weights or another adapter give others."""
    raw = logits.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(raw, digest_size=4).hexdigest()


def _passes(
    model: Any,
    input_ids: torch.Tensor,
    *,
    generation_config: GenerationConfig,
    draw: Callable[[torch.Tensor], torch.Tensor],
    step: FastStep | None,
    **model_kwargs: Any,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    del model_kwargs["stopping_criteria"], model_kwargs["logits_processor"]
    outputs = model._prefill(input_ids, generation_config, model_kwargs)
    cache, unpadded = outputs.past_key_values, _is_unpadded(model, model_kwargs)
    while True:
        if step is None and not unpadded:
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=False)
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        del outputs
        tokens = draw(logits)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        yield tokens.tolist(), logits[0]
        if step is not None:
            outputs = step(tokens)
        elif unpadded:
            outputs = model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True, return_dict=True)
        else:
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
            outputs = model(**inputs, return_dict=True)


def _is_unpadded(model: Any, model_kwargs: dict[str, Any]) -> bool:
    """Whether a token and the cache are all that a pass needs: the library drops a mask that hides nothing, positions
    are then the cache's length, and the model prepares its inputs as all do."""
    prepare = type(model).prepare_inputs_for_generation
    return model_kwargs.get("attention_mask") is None and prepare is GenerationMixin.prepare_inputs_for_generation


def _generation_config(model: PreTrainedModel, settings: GenerationSettings) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id or next(iter(stop_ids(model)), None),
    )


def _sampler(model: PreTrainedModel, settings: GenerationSettings) -> Callable[[torch.Tensor], torch.Tensor]:
    """Next-token logits (rows, vocabulary) -> token ids (rows,), by the settings alone: what a model's own files say of
    sampling, a penalty for repetition say, changes no answer."""
    if settings.temperature == 0:
        return _likeliest
    generator = torch.Generator(model.device).manual_seed(settings.seed)
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(settings.temperature)]
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))

    def draw(scores: torch.Tensor) -> torch.Tensor:
        for warper in warpers:
            scores = warper(None, scores)
        chances = scores.softmax(dim=-1)
        _require_numbers(chances)  # a GPU that draws of them is lost to the process
        return torch.multinomial(chances, 1, generator=generator).squeeze(1)

    return draw


def _likeliest(scores: torch.Tensor) -> torch.Tensor:
    tokens = scores.argmax(dim=-1)
    _require_numbers(scores.gather(1, tokens[:, None]))  # NaN counts as the highest
    return tokens


def _require_numbers(scores: torch.Tensor) -> None:
    if not scores.isfinite().all():
        raise WorkError(
            "answer: the model's scores are no numbers, and no token can be chosen; its training diverged (lower "
            "learning_rate), its weights are damaged, or too large for fp16 where a GPU has no bf16"
        )


def _finish(token: int, stops: tuple[int, ...], last: bool) -> Finish | None:
    if token in stops:
        return "stop"
    return "length" if last else None


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
