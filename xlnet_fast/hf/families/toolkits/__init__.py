"""Conformer attention of other toolkits, whose classes are known by name: none need be installed.

Nobody tells when such a package changes a class, and others have classes of the same name. So a
class must have the attributes and the arguments that are known here, and a small copy of a module
must give the same with its own forward and with ours, before any is taken.
"""
