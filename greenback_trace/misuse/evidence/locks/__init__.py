"""Who holds which lock of `threading`.

A C lock knows no owner. So debug mode puts its own locks in place of those of `threading`
(`replacements`), which note who is about to take them (`claims`). `lookup` says which lock an
expression refers to, and what is known of who has it.
"""
