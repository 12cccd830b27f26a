"""What is written once above the event log, on every adapter; assertions of the suites show their values."""

import pytest

pytest.register_assert_rewrite("tests.conformance.messaging.lanes", "tests.conformance.messaging.relaying")
