"""Recognise what a network takes and what its output means: see `recognise`."""
