//! What happened: one record per connection or request, written exactly once.

pub mod record;
mod connection;
mod format;
mod sink;

pub use connection::ConnectionAccount;
pub use record::{Flag, HttpFields, Record};
pub use sink::{AccessLog, Captured, Encoding, LogSettings, LogTarget};
