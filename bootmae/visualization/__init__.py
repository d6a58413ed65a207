"""Pictures of models: reconstructions, attention maps, principal components, and grids of predictions."""
