"""The `molora` command. Knows every room by name, and imports it in the verb that needs it."""
