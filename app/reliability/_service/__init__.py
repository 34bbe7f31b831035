"""Start at boot: what a service manager is given, so that it starts this system and keeps it.

`systemd` and `cron` write the text, purely; `files` puts it in place; `systemd_manager` talks to the service manager,
behind the port in `managers`; `joining` is what the manager runs, by way of `entry`.
"""
