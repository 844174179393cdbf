"""Tensor shards to batches: dataset, loader, augmentation, training set."""
