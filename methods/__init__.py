"""Self-supervised methods in pure torch: one file a method. Nothing here knows Ray."""
