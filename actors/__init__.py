"""The actors: one package each, and `runtime`, what they all run on. Actors never import each other."""
