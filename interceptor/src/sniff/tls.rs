//! The TLS ClientHello (RFC 8446 section 4.1.2), over any record fragmentation.
//!
//! [`Reader`] takes the record layer apart and joins the handshake message (T-17, T-18); `hello`
//! reads the complete message, once; `flight` looks at what was sent behind it (T-19).

mod flight;
mod hello;

use super::{ClientHello, Malformed, Scan};

/// Most bytes, record headers included, that a ClientHello may take on the wire (T-18).
pub const MAX_BYTES: usize = 64 * 1024;

/// Most bytes in one plaintext record (RFC 8446 section 5.1).
const MAX_FRAGMENT: usize = 1 << 14;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;

const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// Reads a ClientHello from bytes that come in pieces.
///
/// Each byte is looked at once as it comes and once more when the message is complete, so the cost
/// is linear in the bytes however small the pieces. The answer depends on the bytes alone, not on
/// the pieces, with one exception: bytes *behind* a complete hello are judged only if they came in
/// the piece that completed it, as nothing waits for them.
#[derive(Debug, Default)]
pub struct Reader {
    /// Header of the current record, as far as it came.
    header: [u8; RECORD_HEADER],
    header_len: usize,
    /// Bytes of the current record still to come.
    fragment_left: usize,
    /// The handshake message so far, its own header included.
    message: Vec<u8>,
    /// Bytes taken, all layers.
    taken: usize,
    /// The final answer, once there is one.
    end: Option<Scan<ClientHello>>,
    /// Bytes looked at, to show that the cost is linear.
    #[cfg(test)]
    work: usize,
}

/// Why reading stopped without a hello.
enum Stop {
    NotMine,
    Malformed(Malformed),
}

impl From<Malformed> for Stop {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// `Err(malformed(why))` for whatever error type the caller has.
fn malformed<T, E: From<Malformed>>(why: &'static str) -> Result<T, E> {
    Err(Malformed(why).into())
}

impl Reader {
    /// Takes the next bytes of the connection. A final answer stays: what is pushed behind it is
    /// not looked at.
    pub fn push(&mut self, more: &[u8]) -> Scan<ClientHello> {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let scan = match self.read(more) {
            Ok(None) => return Scan::NeedMore,
            Ok(Some(hello)) => Scan::Found(hello),
            Err(Stop::NotMine) => Scan::NotMine,
            Err(Stop::Malformed(malformed)) => Scan::Malformed(malformed),
        };
        self.message = Vec::new();
        self.end.insert(scan).clone()
    }

    fn read(&mut self, mut rest: &[u8]) -> Result<Option<ClientHello>, Stop> {
        while !rest.is_empty() {
            let used = if self.fragment_left == 0 {
                self.take_header_byte(rest[0])?;
                1
            } else {
                self.take_fragment(rest)?
            };
            rest = &rest[used..];
            self.taken += used;
            #[cfg(test)]
            {
                self.work += used;
            }
            if self.is_complete() {
                if self.fragment_left > 0 {
                    return malformed("bytes behind the ClientHello in its record");
                }
                #[cfg(test)]
                {
                    self.work += self.message.len();
                }
                let hello = hello::read(&self.message[HANDSHAKE_HEADER..])?;
                flight::check(rest, hello.early_data)?;
                return Ok(Some(hello.into()));
            }
            if self.taken == MAX_BYTES {
                return malformed("ClientHello is longer than 64 KiB");
            }
        }
        Ok(None)
    }

    /// Takes one byte of a record header and judges it at once.
    fn take_header_byte(&mut self, byte: u8) -> Result<(), Stop> {
        let first = self.taken < RECORD_HEADER;
        match self.header_len {
            0 if byte == CONTENT_HANDSHAKE => {}
            1 if byte == 3 => {}
            0 | 1 if first => return Err(Stop::NotMine),
            0 => return malformed("another record type inside the ClientHello"),
            1 => return malformed("impossible record version"),
            // Up to 3.4: the value means nothing (RFC 8446 section 5.1), but no TLS is newer.
            2 if byte > 4 => return malformed("impossible record version"),
            _ => {}
        }
        self.header[self.header_len] = byte;
        self.header_len += 1;
        if self.header_len == RECORD_HEADER {
            self.header_len = 0;
            self.fragment_left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
            if self.fragment_left == 0 {
                // RFC 8446 section 5.1 forbids zero-length fragments of handshake messages.
                return malformed("empty handshake record");
            }
            if self.fragment_left > MAX_FRAGMENT {
                return malformed("record is longer than 16 KiB");
            }
        }
        Ok(())
    }

    /// Takes what `rest` has of the message in the current record; returns how much that was.
    fn take_fragment(&mut self, rest: &[u8]) -> Result<usize, Stop> {
        let missing = self.message_len() - self.message.len();
        let n = rest.len().min(self.fragment_left).min(missing).min(MAX_BYTES - self.taken);
        self.message.extend_from_slice(&rest[..n]);
        self.fragment_left -= n;
        if self.message[0] != CLIENT_HELLO {
            return malformed("first handshake message is not a ClientHello");
        }
        if self.message_len() > MAX_BYTES - RECORD_HEADER {
            return malformed("ClientHello is longer than 64 KiB");
        }
        Ok(n)
    }

    /// Length of the message with its header, or of the header while that is incomplete.
    fn message_len(&self) -> usize {
        match self.message[..] {
            [_, a, b, c, ..] => HANDSHAKE_HEADER + u32::from_be_bytes([0, a, b, c]) as usize,
            _ => HANDSHAKE_HEADER,
        }
    }

    fn is_complete(&self) -> bool {
        self.message.len() >= HANDSHAKE_HEADER && self.message.len() == self.message_len()
    }
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
#[cfg(any(test, fuzzing))]
mod second;
#[cfg(test)]
mod tests;
