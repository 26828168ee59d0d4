from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(error: type[Exception], *parts: str) -> Iterator[None]:
    """The block raises this error, in one line that holds every part."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message
