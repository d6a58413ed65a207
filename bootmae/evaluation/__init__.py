"""What an encoder or a trained model is worth: frozen features, metrics that keep each class, predictions."""
