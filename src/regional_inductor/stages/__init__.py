"""One module a stage; stages don't import each other."""
