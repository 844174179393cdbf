"""`preprocess --model`: the options and constants with which the tensors of a model were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ripple.errors import ConfigError, ContractError
from ripple.learn.model.contract import CONTRACT, Contract
from ripple.stages.preprocess.batch import DataConstants
from ripple.stages.preprocess.config import PreprocessConfig

#: Options of `preprocess` that the contract of a model decides.
DECIDED = (
    "psf",
    "psf_profile",
    "psf_beta",
    "psf_tolerance",
    "noise_correlation",
    "normalize",
    "scope",
    "softening",
)


def for_model(config: PreprocessConfig, contract: Contract, bands: Sequence[str]) -> PreprocessConfig:
    """The options, with those that the contract decides.

    Parameters
    ----------
    config
        As given.
    contract
        Of the model.
    bands
        Of the cutouts.

    Raises
    ------
    ConfigError
        The contract does not say how its tensors were made, or an option that was given contradicts it.
    ContractError
        The cutouts have other bands.
    """
    if tuple(bands) != contract.bands:
        theirs, mine = ",".join(bands), ",".join(contract.bands)
        raise ContractError(
            f"the cutouts have bands {theirs}, the model takes {mine}", hint="fetch these bands"
        )
    wanted = _decided(contract)
    if wanted.get("noise_correlation") == "measured" and contract.noise_correlation is None:
        raise ConfigError(f"{CONTRACT} lacks the noise correlation", hint="train the model again")
    values = config.model_dump()
    for name in DECIDED:
        given = name in config.model_fields_set
        if given and name in wanted and values[name] != wanted[name]:
            raise ConfigError(
                f"preprocess: {name} is {values[name]}, but the model takes {wanted[name]}",
                hint=f"leave out --{name.replace('_', '-')}, or --model",
            )
    return PreprocessConfig.make(values | wanted)


def _decided(contract: Contract) -> dict[str, Any]:
    pixels, how = dict(contract.pixels), contract.normalization
    if not pixels or "method" not in how:
        raise ConfigError(
            f"{CONTRACT} does not say how the tensors of the model were made",
            hint="give --psf and --normalize as its authors did, or pixels and normalization in its sidecar",
        )
    kind = pixels.pop("psf")
    psf = repr(float(contract.psf_fwhm)) if kind == "width" and contract.psf_fwhm else kind
    found = {"psf": psf, "normalize": how["method"], "scope": how.get("scope", "row")}
    if "softening" in how:
        found["softening"] = how["softening"]
    # Without PSF matching the correlation only says how noise is measured: as known, or white.
    if kind == "none":
        found["noise_correlation"] = "measured" if contract.noise_correlation else "white"
    return found | {name: pixels[name] for name in DECIDED if name in pixels}


def model_constants(contract: Contract, constants: DataConstants) -> DataConstants:
    """The constants, with those that the tensors of the model had: noise correlation, offsets and scales."""
    how = contract.normalization
    return replace(
        constants,
        noise_correlation=contract.noise_correlation,
        offset=how.get("offset"),
        scale=how.get("scale"),
    )
