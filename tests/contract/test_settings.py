from clients.cli.reference import DOCUMENT, reference
from executor_service.settings import ExecutorSettings
from router_service.settings import RouterSettings


def test_the_reference_is_what_the_code_says():
    """Else: python -m clients.cli.reference."""
    assert DOCUMENT.read_text(encoding="utf-8") == reference()


def test_every_setting_is_in_it():
    text = reference()
    for settings in (ExecutorSettings, RouterSettings):
        prefix = settings.model_config["env_prefix"]
        for name, info in settings.model_fields.items():
            assert f"`--{name.replace('_', '-')}`" in text
            assert f"`{prefix}{name.upper()}`" in text
            assert info.description
