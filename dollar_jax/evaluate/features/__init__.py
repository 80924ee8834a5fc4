"""Features for `--features`: one module for each function from frames uint8 [n, h, w, 3] to features [n, d]."""
