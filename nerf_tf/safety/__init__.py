"""What watches over a run: bad steps, collapse, stopping."""
