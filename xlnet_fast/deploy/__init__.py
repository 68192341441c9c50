"""Models and training jobs on Amazon SageMaker: what is made, told, checked, and taken back.

Nothing here imports boto3 before it is used, so that plans are made without it.
"""
