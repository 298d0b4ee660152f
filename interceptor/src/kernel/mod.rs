//! The user side of BPF: load, attach, pin, adopt; tables and events. Never decides.
