"""Conformance of the vector store; assertions of the shared suite show their values."""

import pytest

pytest.register_assert_rewrite("tests.conformance.vectors.suite")
