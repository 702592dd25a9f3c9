"""`--fail-if`: conditions on the results that decide the exit code."""
