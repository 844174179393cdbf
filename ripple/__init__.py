"""RIPPLe: Rubin sky to neural-network tensors, and back as ranked strong-lens candidates."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Lazy: `import ripple` loads neither torch nor lsst.
    if name == "TensorDataset":
        from ripple.learn.data.dataset import TensorDataset

        return TensorDataset
    if name in ("write_cutouts", "write_tensors"):
        from ripple.storage import arrays as write

        return getattr(write, name)
    if name in ("open_survey", "Survey", "Cutout", "Cutouts"):
        from ripple.stages import survey

        return getattr(survey, name)
    if name == "open_coadd":
        from ripple.rubin.open import open_coadd_file

        return open_coadd_file
    if name in ("open_artefact", "verify"):
        from ripple.storage import artefact

        return getattr(artefact, name)
    if name == "denormalize":
        from ripple.imaging.normalize import denormalize

        return denormalize
    raise AttributeError(f"module 'ripple' has no attribute {name!r}")
