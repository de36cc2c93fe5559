"""Studies that make the tables and figures of the documentation; not part of the installed package."""
