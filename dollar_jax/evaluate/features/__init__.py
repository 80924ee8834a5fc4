"""What `--features` may name: functions from frames uint8 [n, h, w, 3] to features [n, d], one a module."""
