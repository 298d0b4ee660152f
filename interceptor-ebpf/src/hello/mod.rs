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

/// Longest handshake message that is read, its header included (T-18). 1.8 KB is what browsers with
/// post-quantum key shares send.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// Most bytes of the message that are copied at a time.
pub const PIECE: usize = 1024;

/// Most records that a hello may come in. One that is longer than a [`PIECE`] counts as several, and
/// a message of the full length in one record is 16.
pub const MAX_RECORDS: usize = 528;

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

    /// Copies `len` bytes (1 to [`PIECE`]) of the payload from `from` on to place `to` (below
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

    /// Gives `value` back as a number of which the compiler knows nothing: it would make branches of
    /// arithmetic otherwise.
    fn opaque(&self, value: usize) -> usize;
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
        Message::Whole { len, end } => (len, end),
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

/// How taking the record layer off ended, as numbers: see [`message`].
mod ended {
    pub(super) const UNCLEAR: usize = 0;
    pub(super) const NEED_MORE: usize = 1;
    pub(super) const WHOLE: usize = 2;
    pub(super) const NOT_TLS: usize = 3;
}

/// Takes the record layer off (T-17): the message ends where a record ends, or it is unclear.
///
/// Conditions are arithmetic where they can be: the verifier remembers every branch of a loop, and
/// takes 8192 of them on one path. And the loop has one way out, where how it ended is a number from
/// memory: the verifier walks what comes behind once, not once for each turn and way out.
#[inline(always)]
fn message(workspace: &mut impl Workspace, total: usize) -> Message {
    if workspace.first_byte() != HANDSHAKE {
        return Message::NotTls;
    }
    // Where in the payload, how much of the message there is, and how much of the record is to come.
    let (mut at, mut filled, mut left) = (0, 0, 0);
    let (mut unread, mut number) = (0, 0);
    let mut end = ended::UNCLEAR;
    while number < MAX_RECORDS {
        at = workspace.blur(0, at);
        filled = workspace.blur(1, filled);
        unread = workspace.blur(2, unread);
        left = workspace.blur(3, left);
        // 1 where a record begins here. Its header is read anyway, and counts only then.
        let fresh = above(workspace, 1, left);
        let skip = fresh * RECORD_HEADER;
        if at + skip >= total {
            end = ended::NEED_MORE;
            break;
        }
        let header = workspace.record_header(at);
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let other = usize::from((header[0] ^ HANDSHAKE) | (header[1] ^ 3)) * fresh;
        let wrong = above(workspace, usize::from(header[2]), 4)
            | above(workspace, 1, len)
            | above(workspace, len, MAX_FRAGMENT);
        if other | (wrong * fresh) != 0 {
            if number == 0 && other != 0 {
                end = ended::NOT_TLS;
            }
            break;
        }
        at += skip;
        left += len * fresh;
        let there = least(workspace, left, total - at);
        let room = least(workspace, PIECE, MAX_MESSAGE - filled);
        let here = least(workspace, there, room);
        unread |= workspace.gather(at, filled, here) as usize;
        filled += here;
        at += here;
        left -= here;
        if number == 0 && workspace.byte(0) != CLIENT_HELLO {
            break;
        }
        if filled >= HANDSHAKE_HEADER {
            let want = HANDSHAKE_HEADER + u24(workspace, 1);
            let whole = above(workspace, want, filled) ^ 1;
            if whole | above(workspace, want, MAX_MESSAGE) != 0 {
                // Too long, or bytes behind it in its record, otherwise.
                if filled == want && left | unread == 0 {
                    end = ended::WHOLE;
                }
                break;
            }
        }
        number += 1;
    }
    match workspace.blur(4, end) {
        ended::NEED_MORE => Message::NeedMore,
        ended::WHOLE => {
            Message::Whole { len: workspace.blur(0, filled), end: workspace.blur(1, at) }
        }
        ended::NOT_TLS => Message::NotTls,
        _ => Message::Unclear,
    }
}

/// 1 where `number` is above `limit`, else 0. Neither comes near 2^63.
#[inline(always)]
fn above(workspace: &impl Workspace, number: usize, limit: usize) -> usize {
    workspace.opaque(limit.wrapping_sub(number)) >> (usize::BITS - 1)
}

/// The smaller one, without a branch.
#[inline(always)]
fn least(workspace: &impl Workspace, a: usize, b: usize) -> usize {
    let all_ones_or_none = workspace.opaque(0_usize.wrapping_sub(above(workspace, b, a)));
    b.wrapping_add(a.wrapping_sub(b) & all_ones_or_none)
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
