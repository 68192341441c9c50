"""What needs a GPU, and is planned, recorded and tested without one."""
