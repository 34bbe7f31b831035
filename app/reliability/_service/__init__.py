"""Start at boot: what a service manager is given, so that it starts this system and keeps it.

`systemd`, `launchd`, `windows` and `cron` write the text, purely; `files` puts it in place; `*_manager` talk to the
service manager, behind the port in `managers`; `joining` is what the manager runs, by way of `entry`.
"""
