"""The press: running a notebook with parameters, and the report of what came out."""
