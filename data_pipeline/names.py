"""Names that people see as equal: found, compared, and shown where an eye cannot tell them apart."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def tidy(name: str) -> str:
    """The name with compatible characters as one, single blanks (none beside '.' and '/') and nothing invisible."""
    # Other blanks than the space (tab, line end) are control characters: made spaces before those are taken out.
    collapsed = " ".join(unicodedata.normalize("NFKC", name).split())
    visible = "".join(letter for letter in collapsed if unicodedata.category(letter) not in ("Cc", "Cf"))
    return re.sub(r" ?([./]) ?", r"\1", " ".join(visible.split()))


def _case(name: str) -> str:
    return unicodedata.normalize("NFKC", tidy(name).casefold())


@lru_cache(maxsize=1 << 16)
def plain(name: str) -> str:
    """The name without what people pass over: Unicode form, blanks, case, and '_' or '-' for a space."""
    return tidy(re.sub(r"[_\-\u2010-\u2014]", " ", _case(name)))


# From the strictest comparison to the loosest.
_FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("Unicode form", _normal),
    ("blanks or invisible characters", tidy),
    ("case", _case),
    ("'_', '-' or blanks", plain),
)


# Names that one is compared with, letter by letter, for a hint: more would take seconds.
_COMPARED = 20_000


class Names:
    """Some names, to be asked which of them another one can mean."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(set(names))
        self._exact = frozenset(self._names)
        self._by_form: list[dict[str, list[str]]] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def matches(self, name: str) -> list[str]:
        """The name itself where it is here, else those equal to it in the strictest form in which any is."""
        if name in self._exact:
            return [name]
        if not self._by_form:
            for _, form in _FORMS:
                by_form: dict[str, list[str]] = {}
                for known in self._names:
                    by_form.setdefault(form(known), []).append(known)
                self._by_form.append(by_form)
        for (_, form), by_form in zip(_FORMS, self._by_form, strict=True):
            # A name of nothing but blanks and dashes is like no other.
            if form(name) and form(name) in by_form:
                return by_form[form(name)]
        return []

    def hint(self, name: str) -> str:
        """' (...)' on what may be meant by a name that matches none or several; '' where nothing is near."""
        several = self.matches(name)
        if several:
            listed = " and ".join(f"'{shown(known)}'" for known in several[:3])
            return f" (equal to {listed} but for {difference(name, several[0])}: write it exactly)"
        forms = {plain(known): known for known in self._names}
        near = difflib.get_close_matches(plain(name), forms, n=1, cutoff=0.75) if len(forms) < _COMPARED else []
        if not near:
            return ""
        known = forms[near[0]]
        letters = _letters(name, known)
        return f" (did you mean '{shown(known)}'?{letters})"


def difference(one: str, other: str) -> str:
    """What two names differ in that people pass over ('case', say); '' where they differ in more."""
    return next((what for what, form in _FORMS if form(one) == form(other)), "")


def _letters(name: str, known: str) -> str:
    """The first letter that looks like another one, by its Unicode name; '' where no letter is beyond ASCII."""
    for written, meant in zip(_case(name), _case(known), strict=False):
        if written != meant:
            if written.isascii() and meant.isascii():
                return ""
            return f" {_described(written)} is not {_described(meant)}"
    return ""


def _described(letter: str) -> str:
    return f"U+{ord(letter):04X} {unicodedata.name(letter, 'unnamed')}"


def shown(name: str) -> str:
    """The name with escapes for what no eye sees or no encoding prints, and for accents that are apart from letters."""
    accents_apart = _normal(name) != name
    return "".join(
        letter
        if letter == "\\" or (letter.isprintable() and not (accents_apart and unicodedata.combining(letter)))
        else letter.encode("unicode_escape").decode()
        for letter in name
    )
