"""The embedded vector server."""

from pathlib import Path

import pytest

from core.settings import VectorSettings
from deploy.component import Component
from deploy.servers.milvus_lite import milvus_lite as milvus_lite_server
from tests.conformance.vectors.suite import VectorSuite
from tests.servers import free_port, start, stop


@pytest.fixture
def vector_settings(milvus_lite: VectorSettings) -> VectorSettings:
    return milvus_lite


class TestMilvusLite(VectorSuite):
    words = True

    def own_server(self, folder: Path) -> tuple[Component, VectorSettings]:
        server = milvus_lite_server(folder, free_port())
        return server, VectorSettings(vectors_url=f"http://{server.address}")

    def test_a_second_server_on_the_folder_says_what_to_do(self, tmp_path: Path) -> None:
        first = milvus_lite_server(tmp_path, free_port())
        process = start(first, tmp_path / "log")
        try:
            with pytest.raises(RuntimeError, match="set HEADRACE_VECTORS_URL to its address"):
                start(milvus_lite_server(tmp_path, free_port()), tmp_path / "second.log")
        finally:
            stop(first, process)
