"""What was proved of the backends on this machine, and what the dispatcher makes of it.

``record`` is the file, ``identity`` what it holds for, ``proof`` which record counts here and which
backend it speaks for. Who makes records is :mod:`xlnet_fast.qualify`.
"""
