"""The Majordomo broker: a pure routing core (`broker.routing`) in a thin shell of sockets (`broker.server`)."""
