//! Starting a command as a covered workload.
