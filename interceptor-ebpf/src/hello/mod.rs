//! The TLS ClientHello (RFC 8446 section 4.1.2) as the kernel reads it: from one packet, without
//! memory between packets, in loops that the verifier can walk.
//!
//! It reads *less* than the proxy's reader (`sniff::tls`) and never otherwise: what it calls
//! [`Reading::Named`] the proxy calls a hello with that name. Everything else (a hello over
//! [`MAX_MESSAGE`], one in more than [`MAX_RECORDS`] records, whatever is malformed or has two
//! readings) is [`Reading::Unclear`]: it is refused, and the proxy may be asked the next time.

mod body;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
mod name;

#[cfg(test)]
mod tests;

/// Longest handshake message that is read, its header included. 1.8 KB is what browsers with
/// post-quantum key shares send.
pub const MAX_MESSAGE: usize = 4096;

/// Most records that a hello may come in.
pub const MAX_RECORDS: usize = 512;

/// Longest name (RFC 1035 section 2.3.4, without the dot at its end).
pub const MAX_NAME: usize = 253;

/// Length of a record's header: type, version, length.
pub const RECORD_HEADER: usize = 5;

/// Where in the key of the names' table the name begins: behind the number of its set.
pub const KEY_NAME: usize = 2;

/// Slots for [`Workspace::mark`].
pub const MARKS: usize = 1024;

/// Slots for [`Workspace::blur`].
pub const BLURRED: usize = 8;

const MAX_FRAGMENT: usize = 1 << 14;
const HANDSHAKE_HEADER: usize = 4;
/// Records behind the hello that are looked at.
const MAX_FOLLOWING: usize = 8;

const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
/// What encryption adds to a record (RFC 8446 section 5.2).
const MAX_EXPANSION: usize = 256;

/// A packet's payload, and the memory that its reading needs.
pub trait Workspace {
    /// Five bytes of the payload from `at` on; zeros if they cannot be read.
    fn record_header(&mut self, at: usize) -> [u8; RECORD_HEADER];

    /// The payload's first byte; 0 if it cannot be read.
    fn first_byte(&mut self) -> u8;

    /// Copies `len` bytes (1 to [`MAX_MESSAGE`]) of the payload from `from` on to place `to` (below
    /// [`MAX_MESSAGE`]) of the message. Not 0: they cannot be read.
    fn gather(&mut self, from: usize, to: usize, len: usize) -> u64;

    /// A byte of the message.
    fn byte(&self, at: usize) -> u8;

    /// Forgets every mark.
    fn clear_marks(&mut self);

    /// Marks a slot (below [`MARKS`]); false if it was marked already.
    fn mark(&mut self, slot: usize) -> bool;

    /// Writes a byte of the key, from [`KEY_NAME`] on.
    fn set_key(&mut self, at: usize, byte: u8);

    /// Gives `value` back as a number of which the verifier knows nothing: it then takes the ways
    /// through a loop for one where they meet, instead of walking each to the program's end. `slot`
    /// (below [`BLURRED`]) tells values apart that are in use together.
    fn blur(&mut self, slot: usize, value: usize) -> usize;
}

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The beginning of a hello: more bytes decide.
    NeedMore,
    /// A whole hello with one valid name of this length. The name is in the key: reversed, in lower
    /// case, with a 0 behind it.
    Named(usize),
    /// A whole hello without a name.
    NoName,
    /// Something else than TLS.
    NotTls,
    /// Claims to be TLS, and cannot be read as one hello here.
    Unclear,
}

/// What follows in the packet behind a whole hello.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    NeedMore,
    /// Its length, and where in the payload it ends.
    Whole {
        len: usize,
        end: usize,
    },
    NotTls,
    Unclear,
}

/// Where [`Workspace::mark`] has it that a hello offered encrypted_client_hello (RFC 9849).
pub const ECH_SLOT: usize = body::slot(0xfe0d);

/// Reads the payload of a packet, `total` bytes, from its first byte on.
#[inline(always)]
pub fn read(workspace: &mut impl Workspace, total: usize) -> Reading {
    let (len, end) = match message(workspace, total) {
        Message::Whole { len, end } => (workspace.blur(0, len), workspace.blur(1, end)),
        Message::NeedMore => return Reading::NeedMore,
        Message::NotTls => return Reading::NotTls,
        Message::Unclear => return Reading::Unclear,
    };
    let Some(body) = body::read(workspace, len) else { return Reading::Unclear };
    if end < total && !(body.early_data && early_data_follows(workspace, end, total)) {
        return Reading::Unclear;
    }
    if body.name_len == 0 {
        return Reading::NoName;
    }
    match name::write_key(workspace, body.name_at, body.name_len) {
        Some(len) => Reading::Named(len),
        None => Reading::Unclear,
    }
}

/// Takes the record layer off (T-17): the message ends where a record ends, or it is unclear.
///
/// Conditions are arithmetic where they can be: the verifier remembers every branch of a loop, and
/// takes 8192 of them on one path.
#[inline(always)]
fn message(workspace: &mut impl Workspace, total: usize) -> Message {
    if workspace.first_byte() != HANDSHAKE {
        return Message::NotTls;
    }
    let (mut at, mut filled) = (0, 0);
    let mut unread = 0;
    let mut number = 0;
    while number < MAX_RECORDS {
        at = workspace.blur(0, at);
        filled = workspace.blur(1, filled);
        unread = workspace.blur(2, unread);
        if at + RECORD_HEADER >= total {
            return Message::NeedMore;
        }
        let header = workspace.record_header(at);
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let other = (header[0] ^ HANDSHAKE) | (header[1] ^ 3);
        let wrong = above(usize::from(header[2]), 4) | above(1, len) | above(len, MAX_FRAGMENT);
        if u64::from(other) | wrong != 0 {
            return if number == 0 && other != 0 { Message::NotTls } else { Message::Unclear };
        }
        at += RECORD_HEADER;
        let here = len.min(total - at);
        if here > MAX_MESSAGE - filled {
            return Message::Unclear;
        }
        unread |= workspace.gather(at, filled, here) as usize;
        filled += here;
        at += here;
        if number == 0 && workspace.byte(0) != CLIENT_HELLO {
            return Message::Unclear;
        }
        if filled >= HANDSHAKE_HEADER {
            let want = HANDSHAKE_HEADER + u24(workspace, 1);
            if filled >= want {
                return if filled == want && here == len && unread == 0 {
                    Message::Whole { len: filled, end: at }
                } else {
                    Message::Unclear
                };
            }
            if filled == MAX_MESSAGE {
                return Message::Unclear;
            }
        }
        if here < len {
            return Message::NeedMore;
        }
        number += 1;
    }
    Message::Unclear
}

/// Not 0 where `number` is above `limit`.
#[inline(always)]
fn above(number: usize, limit: usize) -> u64 {
    (limit as u64).wrapping_sub(number as u64) >> 63
}

/// Whether 0-RTT data and nothing else fills the packet from `at` on (RFC 8446 section 2.3,
/// appendix D.4). A second hello would be a second name (T-19).
#[inline(always)]
fn early_data_follows(workspace: &mut impl Workspace, mut at: usize, total: usize) -> bool {
    let mut number = 0;
    while number < MAX_FOLLOWING {
        at = workspace.blur(0, at);
        if at >= total {
            return true;
        }
        if at + RECORD_HEADER > total {
            return false;
        }
        let header = workspace.record_header(at);
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let most = match header[0] {
            CHANGE_CIPHER_SPEC => MAX_FRAGMENT,
            APPLICATION_DATA => MAX_FRAGMENT + MAX_EXPANSION,
            _ => return false,
        };
        if header[1] != 3 || len == 0 || len > most {
            return false;
        }
        at += RECORD_HEADER + len;
        number += 1;
    }
    false
}

#[inline(always)]
fn u16(workspace: &impl Workspace, at: usize) -> usize {
    usize::from(workspace.byte(at)) << 8 | usize::from(workspace.byte(at + 1))
}

#[inline(always)]
fn u24(workspace: &impl Workspace, at: usize) -> usize {
    usize::from(workspace.byte(at)) << 16 | u16(workspace, at + 1)
}
