"""The life of a request, from its acceptance to its answer."""
