//! Traffic that needs no proxy: which destinations and names the kernel may let go direct, and how
//! its tables follow policy and names' addresses.
//!
//! [`compile`] asks `decide` and nobody else, so the tables say what it says. [`Sync`] keeps them in
//! step; [`Labels`] gives flows their names back when the kernel reports them.

mod book;
mod commons;
pub mod compile;
mod fallback;
mod hints;
mod labels;
mod learned;
mod rows;
mod sets;
mod survey;
mod sync;
#[cfg(test)]
mod tests;

pub use book::AddressBook;
pub use commons::Commons;
pub use fallback::Fallbacks;
pub use hints::name_in;
pub use labels::Labels;
pub use rows::{Compiled, Label, NameSet, Pattern, Row};
pub use sets::{Numbers, REST};
pub use survey::Survey;
pub use sync::{Sync, SyncError};
