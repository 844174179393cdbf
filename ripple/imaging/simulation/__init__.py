"""The simulated sky behind `ripple simulate` and `ripple inject`: numpy only, no lsst, no torch.

`population` draws what is on the sky, `profiles` and `lensing` say what it looks like, `conditions` how it
was observed (PSF and depth per band and cell), `render` paints it, `defects` spoils it, `tables` writes
down the truth.
"""
