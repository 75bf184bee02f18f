from __future__ import annotations

import pytest
from cmcr.cache.errors import RecipeError
from cmcr.cache.variables import seconds_of


def test_a_length_of_time_is_a_number_of_seconds_or_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMCR_X_SECONDS", raising=False)
    assert seconds_of("CMCR_X_SECONDS", 20.0) == 20.0
    for text, expected in (("", 20.0), ("2.5", 2.5), ("1e8", 1e8)):
        monkeypatch.setenv("CMCR_X_SECONDS", text)
        assert seconds_of("CMCR_X_SECONDS", 20.0) == expected
    for wrong in ("10m", "0", "-1", "nan", "inf", "1.1e8"):
        monkeypatch.setenv("CMCR_X_SECONDS", wrong)
        with pytest.raises(RecipeError, match="CMCR_X_SECONDS is") as error:
            seconds_of("CMCR_X_SECONDS", 20.0)
        assert error.value.todo == "unset it, or give 20"
    monkeypatch.setenv("CMCR_X_SECONDS", "0")
    assert seconds_of("CMCR_X_SECONDS", 20.0, zero=True) == 0.0
