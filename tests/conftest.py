"""What all tests share: how hard Hypothesis tries, and where GPU tests run."""

import os

import pytest
import torch
from hypothesis import settings

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("local", deadline=None, print_blob=True)
# The same examples every time, so that a failure belongs to the change that shows it.
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
# For a long look: `pytest --hypothesis-profile=thorough`.
settings.register_profile("thorough", settings.get_profile("local"), max_examples=5_000)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
