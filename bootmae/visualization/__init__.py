"""What a model sees and predicts, as pictures: reconstructions, attention, principal components, grids."""
