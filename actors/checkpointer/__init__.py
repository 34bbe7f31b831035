"""checkpointer: keeps the states that applications hand over, so that a crash costs them half a minute at most."""
