"""Does training on the accelerated modules learn what it should? `-m xlnet_fast.train.proof`."""
