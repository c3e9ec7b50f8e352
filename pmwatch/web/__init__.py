"""Status page, JSON API, metrics and health, served on loopback unless told otherwise."""
