"""config.example.toml shows every key, with its default, and nothing else."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pmwatch import config
from pmwatch.config import Section

EXAMPLE = Path(__file__).resolve().parents[2] / "config.example.toml"
MODELS: dict[str, type[Section]] = {
    "api": config.ApiSection,
    "state": config.StateSection,
    "http": config.HttpSection,
    "log": config.LogSection,
    "delivery": config.DeliverySection,
    "defaults": config.FolderOptions,
    "tenants": config.TenantEntry,
    "folders": config.FolderEntry,
}
# Values without a (useful) default: what stands there is an example.
EXAMPLES = {
    "tenants": {"name", "id", "api_key_file", "api_key"},
    "folders": {"name", "path", "tenant", "datatable"},
}


def shown() -> dict[str, dict[str, Any]]:
    """Return every key of the example by section, those in comments too; a key that comes twice is an error."""
    found: dict[str, dict[str, Any]] = {}
    section = ""
    for line in EXAMPLE.read_text().splitlines():
        header = re.fullmatch(r"\[\[?(\w+)\]\]?", line)
        entry = re.fullmatch(r"(?:# )?(\w+ = .+)", line)
        if header:
            section = header[1]
            found[section] = {}
        elif entry and section:
            for key, value in tomllib.loads(entry[1]).items():
                assert key not in found[section], f"{section}.{key} is shown twice"
                found[section][key] = value
    return found


def read(model: type[Section], values: dict[str, Any]) -> Section:
    required = {name: "x" for name, field in model.keys().items() if field.is_required()}
    return model.model_validate(required | values)


def test_there_is_a_section_for_every_table() -> None:
    assert tuple(shown()) == config.SECTIONS == tuple(MODELS)


def test_every_section_model_is_compared() -> None:
    models = {model for model in vars(config).values() if isinstance(model, type) and issubclass(model, Section)}
    assert set(MODELS.values()) == models - {Section, config.BatchOptions}  # which stands in one line


@pytest.mark.parametrize("section", MODELS)
def test_every_key_is_shown_and_no_other(section: str) -> None:
    assert set(shown()[section]) == set(MODELS[section].keys())


@pytest.mark.parametrize("section", MODELS)
def test_every_value_shown_is_the_default(section: str) -> None:
    model = MODELS[section]
    values = {key: value for key, value in shown()[section].items() if key not in EXAMPLES.get(section, set())}
    defaults, explicit = (read(model, given).model_dump(by_alias=True) for given in ({}, values))
    for key in values:
        assert explicit[key] == defaults[key], f"{section}.{key}"


@pytest.mark.parametrize("section", EXAMPLES)
def test_keys_shown_with_an_example_value_have_no_default_of_their_own(section: str) -> None:
    for key in EXAMPLES[section]:
        field = MODELS[section].keys()[key]
        assert field.is_required() or field.default in (None, ""), f"{section}.{key} has the default {field.default!r}"


@pytest.mark.parametrize("section", MODELS)
def test_every_key_is_explained_on_the_line_above_its_group(section: str) -> None:
    lines = EXAMPLE.read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line in {f"[{section}]", f"[[{section}]]"})
    assert lines[start - 1].startswith("# ")
    for block in "\n".join(lines[start + 1 :]).split("\n\n")[: len(MODELS[section].keys())]:
        if block.startswith("["):
            break
        assert re.match(r"# [A-Z\"]\w*", block), block


def test_it_loads_without_a_problem_and_means_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    settings = config.load(str(EXAMPLE))
    assert settings.listen == ("127.0.0.1", 9108)
    assert [tenant.api_key_file for tenant in settings.tenants] == ["/run/secrets/acme"]
    (folder,) = settings.folders
    assert (folder.name, folder.root, str(folder.target)) == ("orders", b"/srv/drop/orders", "acme/table-456")
    assert (folder.settle_seconds, folder.after_upload) == (5.0, "keep")


@pytest.mark.parametrize("section", MODELS)
def test_every_line_is_valid_with_its_comment_taken_off(section: str) -> None:
    values = shown()[section]
    given = MODELS[section].model_validate(values).model_fields_set
    assert {name.rstrip("_") for name in given} == set(values)


def test_the_environment_variables_it_names_exist() -> None:
    named = re.findall(r"PMWATCH_([A-Z]+)_([A-Z_]+)", EXAMPLE.read_text())
    named = [(section.lower(), key.lower()) for section, key in named if section != "SECTION"]
    assert named
    for section, key in named:
        assert MODELS[section].keys().get(key), f"PMWATCH_{section}_{key}".upper()


def test_the_api_key_in_it_is_none() -> None:
    entry = config.TenantEntry.model_validate(shown()["tenants"])
    assert entry.api_key == SecretStr("the key")
