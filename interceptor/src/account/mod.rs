//! What happened: one record per connection or request, written exactly once.

pub mod record;
mod connection;
mod format;
mod sink;

pub use connection::ConnectionAccount;
pub use record::{Flag, HttpFields, Record};
pub use sink::{AccessLog, Captured, Encoding, LogSettings, LogTarget};

/// The line that the writer writes for `record`, its newline included.
pub fn line(encoding: Encoding, record: &Record) -> String {
    match encoding {
        Encoding::Text => format::text(record),
        Encoding::Json => format::json(record),
    }
}
