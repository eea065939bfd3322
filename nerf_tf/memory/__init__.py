"""Memory of training and rendering: predicted, planned and measured."""
