"""Judges every process by the progress it shows on the liveness board, and kills the ones that hang."""
