"""How much memory a run takes, predicted, planned and measured."""
