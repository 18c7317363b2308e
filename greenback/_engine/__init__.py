"""The engine: bridges and portals, the state they keep, and what workers run.

There is one engine, in Python: `bridge`, with `state` and `work`. Other modules import its
functions from these three. A choice between engines would belong here, once, at import.
`greenback._frames` needs `state` and `bridge` needs `_frames`, so this package would have to be
imported before `_frames`; ``greenback/__init__.py`` does that.
"""
