"""JSON over HTTP in front of the two services, and the gate inspector page. Knows only the SDK."""
