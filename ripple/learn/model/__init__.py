"""What a model is: contract, architecture, network, weights, calibration, uncertainty."""
