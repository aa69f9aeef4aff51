"""Every use of a private torch API, one module per area.

Nothing outside this package imports ``torch._*``.  Each module says on which torch versions it was
checked, so that a new release has one place to look at.
"""
