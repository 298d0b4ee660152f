//! Acting on a decision; one file a verb. Nothing in here decides.

pub mod block;
pub mod dial;
pub mod http;
mod race;
pub mod relay;
