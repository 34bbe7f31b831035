"""What every process of ours runs on: liveness board, transport, the one loop, database policy, configuration."""
