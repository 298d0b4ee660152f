//! The verdict: resources and flow in, a [`Decision`] out. No I/O, no clock, no async.
//!
//! Three doors, each asked only when the one before could not answer: [`by_address`], [`by_hello`]
//! and [`by_request`].

mod decision;
pub mod host;

pub use decision::*;

use crate::origin::OriginalDst;
use crate::sniff::Hello;

/// Everything that a verdict may depend on, compiled and immutable.
#[derive(Debug, Clone, Default)]
pub struct Policy {}

/// What is known of a connection before its first byte.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// The address that the workload dialled.
    pub dst: OriginalDst,
    /// The workload's namespace (visibility: SE-9, REG-5).
    pub namespace: &'a str,
}

/// The verdict where address and port suffice, else what to do while waiting for bytes.
pub fn by_address(_policy: &Policy, _flow: &Flow<'_>) -> ByAddress {
    todo!()
}

/// The verdict once the first bytes are known. Only asked after [`by_address`] said
/// [`ByAddress::Inspect`].
pub fn by_hello(_policy: &Policy, _flow: &Flow<'_>, _hello: &Hello) -> Decision {
    todo!()
}

/// The verdict on one HTTP request of a connection for which [`by_hello`] said [`Action::Http`].
pub fn by_request(_policy: &Policy, _flow: &Flow<'_>, _head: &RequestHead<'_>) -> Decision {
    todo!()
}
