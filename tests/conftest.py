"""What several test modules start from."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab import TwoHosts
from running import until


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    """Two hosts joined by a cable. At the module's end they are gone, and so is every process that was started on them."""
    if os.geteuid() != 0:
        pytest.skip("only root may make two hosts of network namespaces")
    try:
        hosts = TwoHosts(tmp_path_factory.mktemp("two-hosts"))
    except OSError as error:
        pytest.skip(f"two hosts cannot be made of namespaces here: {error}")
    yield hosts
    hosts.close()
    until(lambda: not hosts.left(), 5, "the end of what was started on the two hosts")
