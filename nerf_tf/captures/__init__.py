"""Own captures: scenes of a transforms.json, photos of several sizes and lenses, sparse points beside them."""
