"""The commands of relctl, one family a module; `app.reliability.cli` imports only the one that is asked for."""
