"""Arguments key=value: read against the dataclass that they fill, and written so that they are read the same again.

Text is taken exactly as it is written: no grammar is between the command line and a field that the dataclass types
as str. Only where the field may be None, `null` means None (a folder of that name is ./null). Lists are written
[a,b], dictionaries {a: 0.5}; an element with a comma, a bracket, a quote or outer blanks stands in quotes.
"""

import dataclasses
import difflib
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from data_pipeline.errors import UserError

NULL = "null"
# `int | None` is the one, `Literal[...] | None` the other.
_UNIONS = (types.UnionType, typing.Union)
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Elements that need no quotes: they begin with no sign of the grammar and hold none that ends an element.
_BARE = re.compile(r"""[^\s\[\]{}"',:]([^\[\]{}"',:]*[^\s\[\]{}"',:])?""")
_LARGEST = 2**63 - 1


def split_argument(argument: str) -> tuple[str, str]:
    """Key and value of key=value. UserError where it is written otherwise."""
    key, sign, value = argument.partition("=")
    if key.startswith("-"):
        bare = key.lstrip("-")
        raise UserError(f"{argument}: arguments are written without dashes: {bare or 'key'}={value or 'VALUE'}")
    if not sign or not key:
        raise UserError(f"{argument}: arguments are written key=value, without blanks around the sign")
    return key, value


def later_wins(arguments: Iterable[str]) -> tuple[str, ...]:
    """The arguments as a launcher takes them: of those with one key the last alone."""
    return tuple({argument.partition("=")[0]: argument for argument in arguments}.values())


def read_arguments(kind: type, arguments: Sequence[str]) -> list[tuple[tuple[str, ...], Any]]:
    """Each argument as the path of its field, and the value typed as the dataclass `kind` says; later ones win.

    UserError, one line: no key=value, a key that `kind` does not have, a value of another type.
    """
    found: dict[tuple[str, ...], Any] = {}
    for argument in arguments:
        key, text = split_argument(argument)
        path, hint = field_at(kind, key)
        found.pop(path, None)  # a later one stands later: a dictionary takes the place of its entries before it
        found[path] = read_text(hint, text, key)
    return list(found.items())


def field_at(kind: type, key: str) -> tuple[tuple[str, ...], Any]:
    """The path and the type of the field that a key names. UserError, with the nearest key, where there is none.

    What follows the name of a dictionary is one name in it, whatever it holds.
    """
    names, hint = key.split("."), kind
    path: tuple[str, ...] = ()
    for index, name in enumerate(names):
        if get_origin(hint) is dict:
            return (*path, ".".join(names[index:])), get_args(hint)[1]
        hints = type_hints(hint) if dataclasses.is_dataclass(hint) else {}
        if name not in hints:
            raise UserError(f"{key}: no such key{nearest(key, keys_of(kind)) or '; see --help'}")
        path, hint = (*path, name), hints[name]
    return path, hint


# The types of a dataclass's fields, resolved: every argument asks for them.
type_hints = functools.cache(get_type_hints)


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """The keys of all fields of a dataclass and of those in it."""
    for name, hint in type_hints(kind).items():
        if get_origin(hint) is not typing.ClassVar:
            yield from keys_of(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else (f"{prefix}{name}",)


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was meant, for the end of a message; empty where none is near."""
    found = difflib.get_close_matches(name, list(names), 1)
    return f"; the nearest is {found[0]}" if found else ""


def read_text(hint: Any, text: str, key: str) -> Any:
    """A value as it is written on a command line. UserError, one line, where it is none of that type."""
    inner, optional = without_none(hint)
    if optional and text == NULL:
        return None
    if dataclasses.is_dataclass(inner):
        if text.startswith("{"):
            return _Reader(text, key).whole(dict[str, Any])
        raise UserError(
            f"{key}: not a value but a group of them: give one, {next(keys_of(inner, f'{key}.'))}=VALUE say"
        )
    if get_origin(inner) in (list, tuple, dict) or (inner is Any and text.startswith(("[", "{"))):
        return _Reader(text, key).whole(inner)
    return read_scalar(inner, text, key)


def one_or_more(text: str, key: str) -> list[str]:
    """The values of an argument that is one text, DIR, or a list, [A,B]. UserError for no value, or one given twice."""
    if not text.startswith("["):
        return [text]
    values: list[str] = read_text(list[str], text, key)
    if not values or len(set(values)) < len(values):
        raise UserError(f"{key}={text}: name at least one, and each once")
    return values


def without_none(hint: Any) -> tuple[Any, bool]:
    """The type without its None, and whether there was one."""
    if get_origin(hint) not in _UNIONS:
        return hint, False
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0], len(kinds) < len(get_args(hint))


def read_scalar(hint: Any, text: str, key: str) -> Any:
    """Text as str, bool, int, float or one of a Literal's choices; under Any as what it looks like."""
    if hint is str:
        return text
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint in (int, Any) and _WHOLE.fullmatch(text) and abs(int(text)) <= _LARGEST:
        return int(text)
    if hint in (float, Any) and _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if hint is Any:
        return {NULL: None, "true": True, "false": False}.get(text, text)
    if get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in get_args(hint)}
        if text in choices:
            return choices[text]
        meant = [choice for choice in choices if choice.lower() == text.lower()]
        raise UserError(
            f"{key}={text} is none of {', '.join(choices)}"
            + (f": write {meant[0]}" if meant else nearest(text, choices))
        )
    raise UserError(f"{key}={text}: write {TYPE_WORDS[hint]}")


TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number in digits alone, 3 say",
    float: "a number, 0.5 or 1e-4 say",
    str: "text",
}


class _Reader:
    """Reads a list or a dictionary as it is written on a command line."""

    def __init__(self, text: str, key: str) -> None:
        self._text, self._key, self._at = text, key, 0

    def whole(self, hint: Any) -> Any:
        """The value that the whole text is."""
        value = self._value(hint, "")
        if self._next():
            raise self._refusal(hint)
        return value

    def _value(self, hint: Any, ends: str) -> Any:
        hint, optional = without_none(hint)
        sign, origin = self._next(), get_origin(hint)
        if origin is dict or (hint is Any and sign == "{"):
            key_hint, element = get_args(hint) or (str, Any)
            return dict(self._elements(hint, "{}", lambda: self._entry(key_hint, element)))
        if origin in (list, tuple) or (hint is Any and sign == "["):
            element = (get_args(hint) or (Any,))[0]
            return list(self._elements(hint, "[]", lambda: self._value(element, ",]")))
        if sign and sign in "\"'":
            return read_scalar(str if hint is Any else hint, self._quoted(sign), self._key)
        text = self._plain(ends)
        if optional and text == NULL:
            return None
        return read_scalar(hint, text, self._key)

    def _entry(self, key_hint: Any, element: Any) -> tuple[Any, Any]:
        name = self._value(key_hint, ":,}")
        if self._next() != ":":
            raise self._refusal(dict)
        self._at += 1
        return name, self._value(element, ",}")

    def _elements(self, hint: Any, brackets: str, read: Any) -> Iterator[Any]:
        if self._next() != brackets[0]:
            raise self._refusal(hint)
        self._at += 1
        while self._next() != brackets[1]:
            yield read()
            if self._next() == ",":
                self._at += 1
            elif self._next() != brackets[1]:
                raise self._refusal(hint)
        self._at += 1

    def _next(self) -> str:
        """The next sign that is no blank; empty at the end."""
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _plain(self, ends: str) -> str:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in ends:
            self._at += 1
        text = self._text[start : self._at].rstrip()
        if not text:
            raise self._refusal(list)
        return text

    def _quoted(self, quote: str) -> str:
        r"""What stands between two quotes, in which \" (\') and \\ mean the sign alone; between " also as in JSON."""
        pattern = re.compile(rf"{quote}((?:[^\\{quote}]|\\.)*){quote}", re.DOTALL)
        found = pattern.match(self._text, self._at)
        if found is None:
            raise UserError(f"{self._key}={self._text}: the quote {quote} is not closed; write it at the end, too")
        self._at = found.end()
        if quote == '"':
            try:
                return str(json.loads(found[0], strict=False))
            except ValueError:
                pass
        return re.sub(rf"\\([\\{quote}])", r"\1", found[1])

    def _refusal(self, hint: Any) -> UserError:
        shape = "{name: value, ...}" if hint is dict or get_origin(hint) is dict else "[a,b]"
        return UserError(
            f"{self._key}={self._text}: write {shape}, and an element with a comma, a bracket or a quote in quotes"
        )


def written(value: Any) -> str:
    """A value as an argument has it: `read_text` of its type reads the same."""
    return value if isinstance(value, str) else _element(value)


def _element(value: Any) -> str:
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and value != NULL else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_element(name)}: {_element(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_element, value))}]"
    return json.dumps(value)
