"""The order of the tests."""

from __future__ import annotations

import pytest

LONGEST = "test_values_and_gradients_in_the_interpreter"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes by itself begins first: no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.name != LONGEST)
