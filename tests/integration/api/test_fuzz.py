"""A short run of the fuzzer with a fixed seed; `make fuzz-http` makes many more calls."""

from __future__ import annotations

from tests.integration.api.conftest import TOKEN, Api
from tests.integration.api.fuzz import Fuzzer


def test_the_document_is_kept_whatever_is_sent(api: Api) -> None:
    fuzzer = Fuzzer(api.url, TOKEN, calls=120, seed=1)
    fuzzer.run()
    assert {200, 201, 404, 422} <= fuzzer.statuses.keys()
