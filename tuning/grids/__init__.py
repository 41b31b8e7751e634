"""Tables as data: one file a paper; every `Grid` in it is found by its name."""
