"""Tables of what is refused: a call as its users type it, the error's class, words of the error."""

from __future__ import annotations

from typing import Any

import pytest


def refused(table: list[tuple[str, type[Exception], str]], names: dict[str, Any]) -> Any:
    """Parametrize a test by `call`, `error` and `words`; calls find their `names` there."""
    rows = [
        pytest.param(lambda call=call: eval(call, names), error, words, id=call)
        for call, error, words in table
    ]
    return pytest.mark.parametrize(("call", "error", "words"), rows)


def refusing(table: list[tuple[str, type[Exception], str]], names: dict[str, Any]) -> Any:
    """Make the test that every call of a table raises its error with its words."""

    @refused(table, names)
    def test(call: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            call()

    return test
