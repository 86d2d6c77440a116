"""A short run of the fuzzer with a fixed seed; `make fuzz-http` makes many more calls."""

from __future__ import annotations

import pytest

from tests.integration.api.conftest import TOKEN, Api
from tests.integration.api.fuzz import Fuzzer


# The API runs in this process, and its pool of connections draws from `random` when it opens one; Hypothesis, which
# sees the generator's state changed, takes that for a strategy of ours.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
def test_the_document_is_kept_whatever_is_sent(api: Api) -> None:
    fuzzer = Fuzzer(api.url, TOKEN, calls=120, seed=1)
    fuzzer.run()
    assert {200, 201, 404, 422} <= fuzzer.statuses.keys()
