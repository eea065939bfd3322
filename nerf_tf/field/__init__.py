"""Points and view directions -> raw colour and density."""
