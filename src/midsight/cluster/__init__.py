"""Many machines: one extraction as the tasks of a cluster's array job."""
