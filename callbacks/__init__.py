"""What a run shows and saves."""
