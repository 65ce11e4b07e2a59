"""The same models as the service tests'."""

import pytest

from tests.service.models import Models, make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("soak"))
