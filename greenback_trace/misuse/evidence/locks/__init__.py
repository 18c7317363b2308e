"""Who holds which lock of `threading`.

A C lock knows no owner. So debug mode replaces the locks of `threading` by its own
(`replacements`), and these note who is about to take them (`claims`). `lookup` says which lock an
expression refers to, and what is known of its holder.
"""
