"""Studies that make the tables and pictures of the documentation; not part of the installed package."""
