"""Performance, measured against a named peer or a limit in the same run; never asserted by a test."""
