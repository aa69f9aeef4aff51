"""Common operators and patterns under numerics="eager": compiled or left eager, and equal bit for bit."""
