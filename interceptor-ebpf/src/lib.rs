//! The pure parts of interceptor's kernel side: they know no map and no hook, so they compile and
//! are tested on the host too.
#![cfg_attr(target_arch = "bpf", no_std)]
#![warn(missing_docs)]

pub mod hello;
