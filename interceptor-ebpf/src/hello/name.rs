//! The name as the names' table has it: reversed, so that a wildcard is a prefix of it.

use super::{KEY_NAME, MAX_NAME, Workspace};

/// One less than a power of two: a label is counted until its next bit shows.
const MAX_LABEL: usize = 63;

/// Writes the key of the name at `at` of the message; its length, or `None` for what is no host name
/// (T-20), and for a dot at its end: what that means is the proxy's to say (profiles, HTTP-5).
///
/// Names that read as IP addresses are not told apart: no entry of the table is one.
#[inline(always)]
pub(super) fn write_key(workspace: &mut impl Workspace, at: usize, len: usize) -> Option<usize> {
    if len > MAX_NAME {
        return None;
    }
    // Arithmetic instead of conditions: see `message`.
    let (mut number, mut label, mut wrong) = (0, 0_usize, 0_usize);
    while number < MAX_NAME {
        if number >= len {
            break;
        }
        let class = usize::from(CLASSES[usize::from(workspace.byte(at + len - 1 - number))]);
        let dot = (class >> 8) & 1;
        let empty_so_far = label.wrapping_sub(1) >> (usize::BITS - 1);
        wrong |= (class >> 9) | (dot & empty_so_far);
        label = (label + 1) * (1 - dot);
        wrong |= label & (MAX_LABEL + 1);
        workspace.set_key(KEY_NAME + number, class as u8);
        number += 1;
    }
    let (wrong, label) = (workspace.blur(0, wrong), workspace.blur(1, label));
    if wrong != 0 || label == 0 {
        return None;
    }
    workspace.set_key(KEY_NAME + len, 0);
    Some(len)
}

const DOT: u16 = 1 << 8;
const WRONG: u16 = 1 << 9;

/// What each byte of a name is: itself in lower case, with [`DOT`] or [`WRONG`].
static CLASSES: [u16; 256] = {
    let mut classes = [WRONG; 256];
    let mut byte = 0;
    while byte < 256 {
        let folded = (byte as u8).to_ascii_lowercase();
        classes[byte] = match folded {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => folded as u16,
            b'.' => DOT | folded as u16,
            _ => WRONG,
        };
        byte += 1;
    }
    classes
};
