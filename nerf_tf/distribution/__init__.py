"""Training steps and views on several devices, of one process or of several."""
