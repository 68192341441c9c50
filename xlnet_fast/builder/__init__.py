"""Building the C++ extension: on request only, never at import.

`recipe` says what it is made of and where it lies, `build` makes it: `xlnet-fast build`.
"""
