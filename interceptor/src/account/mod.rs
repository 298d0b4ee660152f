//! What happened: one record per connection or request, written exactly once.

pub mod record;
pub mod wanted;
mod connection;
mod escape;
mod filter;
mod fold;
mod format;
mod operators;
mod refusals;
mod sink;
mod strftime;
mod substitution;
mod tally;
mod values;
mod writer;

pub use connection::{ConnectionAccount, OFFERED_ECH};
pub use filter::{Filter, FilterError};
pub use fold::{FOLD, Folds, Same};
pub use format::{Encoding, Format, FormatError};
pub use record::{Flag, HttpFields, More, Record, TlsFields};
pub use refusals::Refusal;
pub use sink::{AccessLog, Captured, LogSettings, LogTarget, Pen, PodOutputs};
pub use substitution::Substitution;
pub use tally::PodCounts;
