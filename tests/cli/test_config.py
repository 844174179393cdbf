"""Configuration at the edges: unknown keys, YAML bombs, digests, flags made from models."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from ripple.cli.options import config_options
from ripple.config import Config, load_yaml, neutral
from ripple.errors import ConfigError
from ripple.stages.inject.config import InjectConfig
from ripple.stages.simulate.config import SimulateConfig


class Sample(Config):
    verb: ClassVar[str] = "fetch"

    bands: tuple[str, ...] = Field(("g", "r"), description="Bands.")
    size: int = Field(64, ge=1, description="Pixels.")
    edge: Literal["pad", "reject"] = Field("pad", description="Edge.")
    region: str | None = Field(None, description="Region.")
    strict: bool = Field(False, description="Strict.")
    workers: int = neutral(1, description="Workers.")


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'bnads'; did you mean 'bands'"):
        Sample.make({"bnads": ["g"]})


def test_a_wrong_value_names_the_key() -> None:
    with pytest.raises(ConfigError, match="'size'"):
        Sample.make({"size": 0})


def test_what_does_not_fit_together_is_said_in_our_words() -> None:
    with pytest.raises(ConfigError) as err:
        InjectConfig.make({"theta_from": "20"})
    assert err.value.message == "inject: theta_from is 20 km/s, not from 50 to 1000"
    with pytest.raises(ConfigError) as err:
        SimulateConfig.make({"output": "x", "bands": "gq"})
    assert err.value.message == "simulate: 'bands': give different bands out of ugrizy, not gq"


def test_neutral_fields_do_not_change_the_digest() -> None:
    assert Sample.make({"workers": 8}).digest() == Sample.make({}).digest()
    assert Sample.make({"size": 65}).digest() != Sample.make({}).digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{chr(98 + k)}: &{chr(98 + k)} [{','.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(6)
        ), "more than 1000 values"),
        ("- 1\n- 2\n", "top level"),
        ("fetch: [", "not valid YAML"),
        ("a: &a {x: 1}\nb: {<<: [*a, *a]}", "merge keys"),
        ("x: " + "y" * 300_000, "at most"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as err:
        load_yaml(path)
    assert "\n" not in str(err.value)


def command() -> click.Command:
    @click.command()
    @config_options(Sample)
    def show(config: Sample) -> None:
        click.echo(config.model_dump_json())

    return show


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("fetch: {size: 96, region: 'CIRCLE 1 2 3', edge: reject}\npreprocess: {}\n")
    result = CliRunner().invoke(command(), ["-c", str(path), "--size", "32", "--bands", "gri", "--strict"])
    assert result.exit_code == 0, result.output
    config = Sample.model_validate_json(result.output)
    assert (config.size, config.edge, config.region) == (32, "reject", "CIRCLE 1 2 3")
    assert config.bands == ("g", "r", "i")
    assert config.strict


def test_a_section_that_is_no_verb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("fecth: {size: 96}\n")
    result = CliRunner().invoke(command(), ["-c", str(path)])
    assert isinstance(result.exception, ConfigError)
    assert "did you mean 'fetch'" in str(result.exception)
