"""Evaluation of encoders and trained models: frozen features, per-class metrics, predictions, result rows."""
