"""A run of windows that belong to one patient's scan: kept, summed up, outliving the daemon."""
