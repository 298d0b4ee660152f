//! The body of a whole ClientHello: every byte must have its place (T-23).

use super::{HANDSHAKE_HEADER, MARKS, Workspace, u16};

/// Extensions that are looked at. Browsers send fewer than 20.
const MAX_EXTENSIONS: usize = 40;
/// Protocols of ALPN that are looked at.
const MAX_PROTOCOLS: usize = 96;
/// Compression methods that are looked at.
const MAX_METHODS: usize = 4;

const SERVER_NAME: usize = 0;
const ALPN: usize = 16;
const EARLY_DATA: usize = 42;

const VERSION_AND_RANDOM: usize = 2 + 32;
const MAX_SESSION_ID: usize = 32;

/// What a hello says.
#[derive(Clone, Copy)]
pub(super) struct Body {
    pub(super) early_data: bool,
    /// Where in the message the name is.
    pub(super) name_at: usize,
    /// 0: there is none (T-21).
    pub(super) name_len: usize,
}

/// Reads a message of `end` bytes; `None` where it is not a hello that is read here.
#[inline(always)]
pub(super) fn read(workspace: &mut impl Workspace, end: usize) -> Option<Body> {
    let mut body = Body { early_data: false, name_at: 0, name_len: 0 };
    let mut at = HANDSHAKE_HEADER;
    if at + VERSION_AND_RANDOM >= end {
        return None;
    }
    // SSL 3.0 must be refused (RFC 8446 appendix D.5); 1.3 says 1.2 here (section 4.1.2).
    if workspace.byte(at) != 3 || !matches!(workspace.byte(at + 1), 1..=3) {
        return None;
    }
    at += VERSION_AND_RANDOM;
    let session_id = usize::from(workspace.byte(at));
    at += 1 + session_id;
    if session_id > MAX_SESSION_ID || at + 2 > end {
        return None;
    }
    let ciphers = u16(workspace, at);
    at += 2 + ciphers;
    if ciphers == 0 || !ciphers.is_multiple_of(2) || at >= end {
        return None;
    }
    let methods = usize::from(workspace.byte(at));
    at += 1;
    if at + methods > end || !has_null_method(workspace, at, methods) {
        return None;
    }
    at += methods;
    if at == end {
        return Some(body);
    }
    if at + 2 > end || u16(workspace, at) != end - at - 2 {
        return None;
    }
    at += 2;

    workspace.clear_marks();
    // Where these two are, looked at behind the loop: loops in loops are too long for the verifier.
    let (mut names, mut protocols, mut early_data) = ((0, 0), (0, 0), 0);
    let mut number = 0;
    while number < MAX_EXTENSIONS {
        at = workspace.blur(0, at);
        names = (workspace.blur(1, names.0), workspace.blur(2, names.1));
        protocols = (workspace.blur(3, protocols.0), workspace.blur(4, protocols.1));
        early_data = workspace.blur(5, early_data);
        if at + 4 > end {
            break;
        }
        let (kind, len) = (u16(workspace, at), u16(workspace, at + 2));
        at += 4;
        if at + len > end || !workspace.mark(slot(kind)) {
            return None;
        }
        match kind {
            SERVER_NAME => names = (at, len),
            ALPN => protocols = (at, len),
            EARLY_DATA => early_data = 1,
            _ => {}
        }
        at += len;
        number += 1;
    }
    body.early_data = early_data != 0;
    let (protocols_at, protocols_len) = protocols;
    if at != end || (protocols_at != 0 && !is_alpn(workspace, protocols_at, protocols_len)) {
        return None;
    }
    let (name_at, name_len) = server_name(workspace, names.0, names.1)?;
    body.name_at = workspace.blur(1, name_at);
    body.name_len = workspace.blur(2, name_len);
    Some(body)
}

/// Where an extension's type is marked. The same type twice (RFC 8446 section 4.2 forbids it, T-19)
/// meets its own mark; so may two types whose slots agree, and then the hello is unclear. Those in
/// use do not (see the tests).
#[inline(always)]
pub(super) const fn slot(kind: usize) -> usize {
    (kind ^ (kind >> 7)) & (MARKS - 1)
}

#[inline(always)]
fn has_null_method(workspace: &impl Workspace, at: usize, methods: usize) -> bool {
    if methods > MAX_METHODS {
        return false;
    }
    let (mut number, mut found) = (0, false);
    while number < MAX_METHODS {
        if number < methods && workspace.byte(at + number) == 0 {
            found = true;
        }
        number += 1;
    }
    found
}

/// The one host name of `server_name` (RFC 6066 section 3): where it is, and its length. Nothing in
/// it, in its list or in its name is no name.
#[inline(always)]
fn server_name(workspace: &impl Workspace, at: usize, len: usize) -> Option<(usize, usize)> {
    if len == 0 {
        return Some((0, 0));
    }
    if len < 2 || u16(workspace, at) != len - 2 {
        return None;
    }
    if len == 2 {
        return Some((0, 0));
    }
    // Exactly one, of the only type that there is.
    if len < 5 || workspace.byte(at + 2) != 0 || u16(workspace, at + 3) != len - 5 {
        return None;
    }
    Some((at + 5, len - 5))
}

/// Whether the protocols (RFC 7301 section 3.1) fill the extension exactly.
#[inline(always)]
fn is_alpn(workspace: &mut impl Workspace, at: usize, len: usize) -> bool {
    if len < 4 || u16(workspace, at) != len - 2 {
        return false;
    }
    let end = at + len;
    let (mut at, mut number) = (at + 2, 0);
    while number < MAX_PROTOCOLS {
        at = workspace.blur(0, at);
        if at == end {
            return true;
        }
        let protocol = usize::from(workspace.byte(at));
        if protocol == 0 || at + 1 + protocol > end {
            return false;
        }
        at += 1 + protocol;
        number += 1;
    }
    at == end
}
