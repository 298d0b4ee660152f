//! What came behind a complete ClientHello, before the server can have answered.

use super::{CONTENT_HANDSHAKE, MAX_FRAGMENT, RECORD_HEADER, malformed};
use crate::sniff::Malformed;

const CONTENT_CHANGE_CIPHER_SPEC: u8 = 20;
const CONTENT_ALERT: u8 = 21;
const CONTENT_APPLICATION_DATA: u8 = 23;

/// Most bytes that encryption adds to a record (RFC 8446 section 5.2).
const MAX_EXPANSION: usize = 256;

/// Judges the bytes that follow the record of a ClientHello in the same flight.
///
/// An honest client sends nothing there but 0-RTT data, with or without a compatibility
/// change_cipher_spec in front (RFC 8446 section 2.3, appendix D.4), or an alert when it gives up. A
/// second hello in particular is a second name (T-19).
pub(super) fn check(mut rest: &[u8], early_data: bool) -> Result<(), Malformed> {
    while let [content, after_content @ ..] = rest {
        let encrypted = match *content {
            CONTENT_HANDSHAKE => return malformed("second handshake message in the first flight"),
            CONTENT_CHANGE_CIPHER_SPEC if early_data => false,
            CONTENT_APPLICATION_DATA if early_data => true,
            CONTENT_ALERT => false,
            _ => return malformed("bytes behind the ClientHello"),
        };
        if after_content.first().is_some_and(|major| *major != 3) {
            return malformed("bytes behind the ClientHello");
        }
        let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER>() else { break };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if len == 0 || len > MAX_FRAGMENT + if encrypted { MAX_EXPANSION } else { 0 } {
            return malformed("bad record length behind the ClientHello");
        }
        rest = after.get(len..).unwrap_or_default();
    }
    Ok(())
}
