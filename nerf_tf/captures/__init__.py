"""Captures of people: scenes of a transforms.json, photos of several sizes and lenses, sparse points beside them."""
