"""A real Milvus of the generation before word search: everything but that must hold there too."""

from pathlib import Path

import pytest

from core.settings import VectorSettings
from core.vectors import Vectors, VectorsUnavailableError
from deploy.component import Component
from deploy.provision import Programs
from deploy.servers.milvus import PORTS, TOKEN
from deploy.servers.milvus import milvus as milvus_server
from tests.conformance.vectors.suite import VectorSuite
from tests.servers import free_ports


@pytest.fixture
def vector_settings(milvus: VectorSettings) -> VectorSettings:
    return milvus


class TestMilvusServer(VectorSuite):
    words = False

    @pytest.fixture(autouse=True)
    def _program(self, stack_programs: Programs) -> None:
        self.program = stack_programs.milvus

    def own_server(self, folder: Path) -> tuple[Component, VectorSettings]:
        server = milvus_server(folder, free_ports(PORTS), server=self.program)
        return server, VectorSettings(vectors_url=f"http://{server.address}", vectors_token=TOKEN)

    def test_a_wrong_token_is_told(self, vector_settings: VectorSettings) -> None:
        wrong = Vectors(VectorSettings(vectors_url=vector_settings.vectors_url, vectors_token="root:no"))
        with pytest.raises(VectorsUnavailableError, match="or refuses HEADRACE_VECTORS_TOKEN"):
            wrong.ping()
