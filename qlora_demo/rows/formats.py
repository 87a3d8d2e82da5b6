"""A row of any accepted shape -> chat messages.  What a column means is detected from its name, or said by hand.

messages                         a list of role/content turns; or conversations (ShareGPT) with from/value
prompt + completion              texts or turns; also instruction + output (alpaca), question + answer, query + response
context                          joined to a prompt that is text: alpaca's input, a question's passage
system, system_prompt            the opening turn, unless the turns begin with one of their own
text                             every token is trained

What has no place in these is refused and not left out: tools and their calls, reasoning, weights and labels of answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import DataError
from ..records import Message

Row = dict[str, Any]
_KNOWN: tuple[dict[str, tuple[str, ...]], ...] = (
    {"messages": ("messages", "conversations", "conversation", "dialog")},
    {
        "prompt": ("prompt",),
        "completion": ("completion", "response", "answer"),
        "context": ("context", "input"),
    },
    {"prompt": ("instruction",), "completion": ("output", "response"), "context": ("input", "context")},
    {
        "prompt": ("question", "query"),
        "completion": ("answer", "response", "output"),
        "context": ("context", "passage", "input"),
    },
    {"prompt": ("input",), "completion": ("output", "target", "label")},
    {"text": ("text", "content")},
)
"""Meanings and the columns they go by, the likeliest first; a context may be missing."""
_OPTIONAL = ("context", "system")
_SYSTEM = ("system", "system_prompt")
_UNREAD_COLUMNS = ("tools", "functions", "history")
_UNREAD_IN_TURNS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_TURNS = ({"role", "content"}, {"from", "value"})
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
FORMATS = "messages | prompt + completion | instruction + output | question + answer | conversations | text"


def detect(columns: Iterable[str]) -> dict[str, str]:
    """What each meaning's column is called; empty where the columns are not understood."""
    there = {str(name).lower(): str(name) for name in columns}
    for known in _KNOWN:
        found = {meaning: next((there[n] for n in names if n in there), "") for meaning, names in known.items()}
        if all(found[meaning] or meaning in _OPTIONAL for meaning in found):
            found["system"] = next((there[n] for n in _SYSTEM if n in there), "")
            return {meaning: name for meaning, name in found.items() if name}
    return {}


def is_row(value: Any) -> bool:
    """Whether this is a row whose columns are understood, and no turn of one."""
    return isinstance(value, dict) and bool(detect(value)) and not any(turn <= set(value) for turn in _TURNS)


def to_messages(row: Row, mapping: Mapping[str, str], where: str) -> Row:
    """``{"messages": [...]}``, or ``{"text": ...}``; ``mapping`` corrects what is detected.

    Raises `DataError` naming the place and the remedy.
    """
    detected = {meaning: name for meaning, name in detect(row).items() if name not in mapping.values()}
    meant = {**detected, **mapping}
    if missing := [name for name in meant.values() if name not in row]:
        raise DataError(f"{where}: has no column {missing[0]!r} (it has {', '.join(map(str, row))}); correct columns")
    if mapping:
        meant = _chosen(meant, mapping)
    if "messages" in meant or ("prompt" in meant and "completion" in meant):
        _refuse_unread(row, [name for name in _UNREAD_COLUMNS if name not in meant.values()], where)
        if isinstance(row.get("label"), bool):
            raise DataError(
                f"{where}: label is {row['label']}, but all answers are trained alike; leave label or row out"
            )
        turns = _from_messages(row, meant, where) if "messages" in meant else _from_pair(row, meant, where)
        return {"messages": _opened(_answered(turns, where), _text(row, meant, "system", where), where)}
    if "text" in meant:
        if not mapping and row.get("role") in _ROLES.values():
            raise DataError(f"{where}: is one turn ({row['role']}); give a conversation's turns as one row's messages")
        text = row[meant["text"]]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: text is empty; remove the row or fill it")
        check_characters(text, f"{where}: text")
        return {"text": text}
    raise DataError(f"{where}: columns {', '.join(map(str, row)) or '(none)'} are not understood; {_remedy(row)}")


def _remedy(row: Row) -> str:
    names = list(map(str, row))
    example = f"prompt={names[0]}, completion={names[1]}" if len(names) > 1 else f"text={''.join(names)}"
    return f"use {FORMATS}" + (f", or say in the field columns what they are, like {example}" if names else "")


def checked_turns(turns: Iterable[Any], where: str) -> list[Message]:
    """The turns as role and content; raises `DataError` naming the first that is none, or says more than is read."""
    return [_checked_turn(turn, f"{where}, message {number}") for number, turn in enumerate(turns, 1)]


def out_of_order(messages: Iterable[Message]) -> bool:
    """Whether turns do not take turns: system first if at all, then user and assistant by turns."""
    roles = [message["role"] for message in messages]
    rest = roles[1:] if roles[0] == "system" else roles
    return rest != ["user", "assistant"] * (len(rest) // 2)


def check_characters(text: str, where: str) -> None:
    """Raise `DataError` for half of a surrogate pair, which JSON can write: no file takes it and no tokenizer."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise DataError(f"{where} holds half a character ({text[exc.start]!r}); correct it") from exc


def _chosen(meant: dict[str, str], mapping: Mapping[str, str]) -> dict[str, str]:
    """What is said by hand goes before what was detected of another kind."""
    for kind in ({"messages"}, {"prompt", "completion"}, {"text"}):
        if kind & set(mapping):
            kept = kind | set(mapping) | {"system"} | ({"context"} if "prompt" in kind else set())
            return {name: column for name, column in meant.items() if name in kept}
    return meant


def _from_messages(row: Row, meant: Mapping[str, str], where: str) -> list[Any]:
    turns = row[meant["messages"]]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: holds no messages (it is {type(turns).__name__}); give a list of role/content turns")
    _refuse_context(row, meant, where)
    return [_from_sharegpt(turn) if isinstance(turn, dict) and "from" in turn else turn for turn in turns]


def _from_pair(row: Row, meant: Mapping[str, str], where: str) -> list[Any]:
    prompt, completion = row[meant["prompt"]], row[meant["completion"]]
    answered = completion if isinstance(completion, list) else [_turn("assistant", completion)]
    if isinstance(prompt, list):
        _refuse_context(row, meant, where)
        return prompt + answered
    asked = (_text(row, meant, name, where) for name in ("prompt", "context"))
    return [_turn("user", "\n\n".join(part for part in asked if part)), *answered]


def _text(row: Row, meant: Mapping[str, str], meaning: str, where: str) -> str:
    """What a row's column of that meaning holds; empty where there is no such column or nothing in it."""
    value = row[meant[meaning]] if meaning in meant else None
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {meaning} (column {meant[meaning]!r}) {_no_text(value)}")
    return value if value and value.strip() else ""


def _no_text(value: Any) -> str:
    return f"is no text (it is {type(value).__name__}); write it as text"


def _refuse_context(row: Row, meant: Mapping[str, str], where: str) -> None:
    if _text(row, meant, "context", where):
        raise DataError(
            f"{where}: context (column {meant['context']!r}) has no place beside a list of turns; "
            "write it into a turn, or leave it out"
        )


def _opened(messages: list[Message], system: str, where: str) -> list[Message]:
    """The turns behind a system column's text, unless they begin with a system turn of their own."""
    if not system or messages[0]["role"] == "system":
        return messages
    check_characters(system, f"{where}: system")
    return [{"role": "system", "content": system}, *messages]


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _from_sharegpt(turn: dict[str, Any]) -> dict[str, Any]:
    return turn | _turn(_ROLES.get(str(turn.get("from")), ""), turn.get("value"))


def _answered(turns: list[Any], where: str) -> list[Message]:
    messages = checked_turns(turns, where)
    for number, turn in enumerate(turns, 1):
        weight = turn.get("weight")
        if turn["role"] == "assistant" and isinstance(weight, int | float) and weight != 1:
            place = f"{where}, message {number}"
            raise DataError(f"{place}: weight is {weight}, but all answers are trained alike; leave weight or row out")
    if not messages or messages[-1]["role"] != "assistant":
        last = messages[-1]["role"] if messages else "nothing"
        raise DataError(f"{where}: has no answer (it ends with {last}); add an assistant message")
    return messages


def _checked_turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict) or turn.get("role") not in ("system", "user", "assistant"):
        raise DataError(f"{where}: role is not system, user or assistant; correct it")
    _refuse_unread(turn, _UNREAD_IN_TURNS, where)
    role, content = turn["role"], turn.get("content")
    what = "answer" if role == "assistant" else f"{role} text"
    if content is not None and not isinstance(content, str):
        raise DataError(f"{where}: the {what} {_no_text(content)}")
    if not content or not content.strip():
        raise DataError(f"{where}: has no {what}; remove the row or fill it")
    check_characters(content, f"{where}:")
    return {"role": role, "content": content}


def _refuse_unread(holder: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Raise `DataError` where a row or a turn holds what would not be trained on and changes what the rest means."""
    for name in names:
        if holder.get(name) and holder[name] != "[]":
            kind = type(holder[name]).__name__
            raise DataError(f"{where}: {name} is not trained on (it is {kind}); write it into a turn, or leave it out")
