"""Names that look equal to people: how to match, compare and show them."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def tidy(name: str) -> str:
    """The name in Unicode form NFKC, with single blanks (none beside '.' and '/') and no invisible characters."""
    # Tabs and line ends are control characters: `split` makes them spaces before those are removed.
    collapsed = " ".join(unicodedata.normalize("NFKC", name).split())
    visible = "".join(letter for letter in collapsed if unicodedata.category(letter) not in ("Cc", "Cf"))
    return re.sub(r" ?([./]) ?", r"\1", " ".join(visible.split()))


def _case(name: str) -> str:
    return unicodedata.normalize("NFKC", tidy(name).casefold())


@lru_cache(maxsize=1 << 16)
def plain(name: str) -> str:
    """The name with Unicode form, blanks and case normalised, and '_' and '-' as spaces."""
    return tidy(re.sub(r"[_\-\u2010-\u2014]", " ", _case(name)))


# From the strictest to the loosest comparison.
_FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("Unicode form", _normal),
    ("blanks or invisible characters", tidy),
    ("case", _case),
    ("'_', '-' or blanks", plain),
)
COMPARED = 20_000  # at most so many names are compared letter by letter for a hint: more would take seconds


class Names:
    """A set of names in which other spellings are looked up."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(set(names))
        self._exact = frozenset(self._names)
        self._by_form: list[dict[str, list[str]]] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def matches(self, name: str) -> list[str]:
        """Known names that `name` can mean: itself if it is known, else all that equal it in one form.

        The forms of `_FORMS` are tried in turn, each looser than the one before; the first with a match counts.
        """
        if name in self._exact:
            return [name]
        if not self._by_form:
            for _, form in _FORMS:
                by_form: dict[str, list[str]] = {}
                for known in self._names:
                    by_form.setdefault(form(known), []).append(known)
                self._by_form.append(by_form)
        for (_, form), by_form in zip(_FORMS, self._by_form, strict=True):
            if form(name) and form(name) in by_form:  # a name of blanks and dashes alone matches nothing
                return by_form[form(name)]
        return []

    def hint(self, name: str) -> str:
        """' (...)' with a suggestion for a name that matches none or several; '' if none is similar."""
        several = self.matches(name)
        if several:
            listed = " and ".join(f"'{shown(known)}'" for known in several[:3])
            return f" (equal to {listed} but for {difference(name, several[0])}: write it exactly)"
        forms = {plain(known): known for known in self._names}
        near = difflib.get_close_matches(plain(name), forms, n=1, cutoff=0.75) if len(forms) < COMPARED else []
        if not near:
            return ""
        return f" (did you mean '{shown(forms[near[0]])}'?{_letters(name, forms[near[0]])})"


def difference(one: str, other: str) -> str:
    """In what two names differ that look equal ('case', say); '' if they differ in more."""
    return next((what for what, form in _FORMS if form(one) == form(other)), "")


def _letters(name: str, known: str) -> str:
    """The first differing letters by their Unicode names; '' if both are ASCII."""
    for written, meant in zip(_case(name), _case(known), strict=False):
        if written != meant:
            if written.isascii() and meant.isascii():
                return ""
            both = [f"U+{ord(letter):04X} {unicodedata.name(letter, 'unnamed')}" for letter in (written, meant)]
            return f" {both[0]} is not {both[1]}"
    return ""


def shown(name: str) -> str:
    """The name with escapes for invisible or unprintable characters and for combining accents."""
    accents_apart = _normal(name) != name
    return "".join(
        letter
        if letter == "\\" or (letter.isprintable() and not (accents_apart and unicodedata.combining(letter)))
        else letter.encode("unicode_escape").decode()
        for letter in name
    )
