//! What keeps a record one line: whatever a client or upstream chose is escaped and bounded (T-56).

use std::fmt::Write as _;
use std::io;

use serde_json::ser::Formatter;

/// No field prints more than this many bytes (T-56).
const FIELD_MAX: usize = 1024;

/// What becomes of a space in a text field.
#[derive(Clone, Copy)]
pub(super) enum Spaces {
    Keep,
    Underscore,
    Escape,
}

/// Writes `value`, which is not empty, fit for a text line.
pub(super) fn escape(value: &str, spaces: Spaces, out: &mut String) {
    let stays = |byte: u8| match byte {
        b'"' | b'\\' => false,
        b' ' => matches!(spaces, Spaces::Keep),
        other => other.is_ascii_graphic(),
    };
    if value.len() <= FIELD_MAX && value.bytes().all(stays) {
        return out.push_str(value);
    }
    let start = out.len();
    for c in value.chars() {
        let before = out.len();
        match (c, spaces) {
            ('"' | '\\', _) => {
                out.push('\\');
                out.push(c);
            }
            (' ', Spaces::Underscore) => out.push('_'),
            (' ', Spaces::Escape) => out.push_str("\\x20"),
            _ if c.is_ascii_control() => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            _ if is_hazard(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            _ => out.push(c),
        }
        if out.len() - start > FIELD_MAX {
            out.truncate(before);
            break;
        }
    }
}

/// Compact JSON that also escapes what JSON would let through but a terminal obeys (T-56).
pub(super) struct AsciiControls;

impl Formatter for AsciiControls {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_hazard(*c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            // Every hazard lies in the basic plane, so one escape is enough.
            write!(writer, "\\u{:04x}", u32::from(c))?;
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Characters that are never printed as they are: controls (C0, DEL, C1), what some readers take
/// for a line end, what changes the direction of text, and what is invisible.
pub(super) fn is_hazard(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// At most [`FIELD_MAX`] bytes of `value`, cut between characters.
pub(super) fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(FIELD_MAX)]
}
