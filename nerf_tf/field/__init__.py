"""Points and view directions -> raw colour and density."""

from nerf_tf import tensor_float

tensor_float.use(False)  # here, so that it is off for whoever imports a field
