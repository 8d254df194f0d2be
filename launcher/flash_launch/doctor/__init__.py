"""The command `doctor`: checks of the machines a run would use, each OK, WARN or FAIL with the fix."""
