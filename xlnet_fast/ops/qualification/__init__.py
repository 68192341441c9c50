"""What was proved of the backends on this machine, and what the dispatcher makes of it.

``record`` is what a file holds, ``identity`` what it holds for, ``files`` where records lie and
which one counts, ``jobs`` one for all processes of a job, ``proof`` what it says of the backends.
Who makes records is :mod:`xlnet_fast.qualifier`.
"""
