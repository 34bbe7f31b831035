"""health_monitor: is the machine, is the database, is every process of ours well? Checks that hang are findings too."""
