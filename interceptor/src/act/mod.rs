//! Acting on a decision; one file a verb. Nothing in here decides.

pub mod block;
pub mod carrier;
pub mod cluster;
pub mod dial;
pub mod door;
pub mod http;
mod preamble;
mod race;
pub mod relay;
mod stream;
pub mod tls;
pub mod tunnel;

use crate::decide::route::Destination;

/// One of `destinations`, by weight (VS-22, VS-62).
///
/// # Panics
/// There is none: decisions always carry one.
pub fn pick(destinations: &[Destination]) -> &Destination {
    let total: u64 = destinations.iter().map(|one| u64::from(one.weight)).sum();
    let mut ticket = dial::random_below(total);
    for one in destinations {
        match ticket.checked_sub(u64::from(one.weight)) {
            Some(left) => ticket = left,
            None => return one,
        }
    }
    &destinations[destinations.len() - 1]
}
