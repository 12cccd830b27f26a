"""What is generated from the settings classes is up to date, and complete."""

import pytest

from core.settings import ALL, Settings
from deploy.reference import documents, env_example, shown_default, variable
from deploy.settings import LauncherSettings

CLASSES: tuple[type[Settings], ...] = (*ALL, LauncherSettings)


@pytest.mark.parametrize("file", [*documents()], ids=lambda file: file.name)
def test_generated_documents_are_up_to_date(file: object) -> None:
    documented = {path: text for path, text in documents().items() if path == file}
    for path, text in documented.items():
        assert path.read_text() == text, "run `make docs`"


def test_every_setting_is_described() -> None:
    for kind in CLASSES:
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name}"
            assert f"{variable(name)}=" in env_example()


def test_defaults_of_the_example_are_accepted() -> None:
    for kind in CLASSES:
        for name, field in kind.model_fields.items():
            if default := shown_default(field):
                kind.__pydantic_validator__.validate_assignment(kind.model_construct(), name, default)


def test_no_settings_class_is_forgotten() -> None:
    assert set(_subclasses(Settings)) == set(CLASSES)


def _subclasses(kind: type[Settings]) -> list[type[Settings]]:
    return [found for child in kind.__subclasses__() for found in (child, *_subclasses(child))]
