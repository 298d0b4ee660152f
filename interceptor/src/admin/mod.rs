//! The control socket: what is attached, what is in the tables, and changing it while it runs.
