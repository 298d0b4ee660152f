//! What a rule does: destinations, redirects, retries, faults and the rest of section 10.3, with
//! what VSV says of each.

mod cors;
mod destinations;
mod fault;
mod headers;
mod reply;
mod retries;

pub(super) use self::cors::cors;
pub(super) use self::destinations::{mirrors, route};
pub(super) use self::fault::fault;
pub(super) use self::headers::{headers, rewrite};
pub(super) use self::reply::{direct_response, redirect};
pub(in super::super) use self::retries::{default_retries, retries};
