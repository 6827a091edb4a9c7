"""Core: decisions and tables. Nothing here opens a file, reads a clock or logs."""
