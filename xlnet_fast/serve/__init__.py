"""XLNet models as a service: batches by length, versions in folders, the usual protocols."""
