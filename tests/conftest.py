"""What several test modules start from."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from lab import TwoHosts
from running import SOON, until

# An example may take long, and so may its making, because the machine does something else.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure() -> None:
    """A shell's background job ignores SIGINT, and so would all that the tests start. All nodes that they start share a token."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["NCCLCHECK_TOKEN"] = f"of-these-tests-{secrets.token_hex(16)}"


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
    until(lambda: not hosts.left(), SOON, "the end of what was started on the two hosts")
