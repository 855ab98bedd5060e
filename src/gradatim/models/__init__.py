"""What learns? Torch modules, PreTrainedModel and scikit-learn estimators."""
