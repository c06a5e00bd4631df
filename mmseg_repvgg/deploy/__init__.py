"""From a trained model to what is served."""
