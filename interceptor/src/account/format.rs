//! A record as one line: Envoy's default text format, field for field (LOG-1), or its JSON form
//! (LOG-30). Whatever a client or upstream chose is escaped (T-56), so one record is always one
//! line and no field can be mistaken for its neighbour.

use std::fmt::{self, Display, Write as _};
use std::io;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::ser::Formatter;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::{Flag, Record};

/// No field prints more than this many bytes (T-56).
const FIELD_MAX: usize = 1024;

/// Field 1: UTC with milliseconds.
const START_TIME: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The text line of `record` (LOG-1), its newline included.
pub(super) fn text(record: &Record) -> String {
    let http = record.http.as_ref();
    let mut line = String::with_capacity(512);
    let mut put = |piece: fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = line.write_fmt(piece);
    };
    let quoted = |value: Option<&str>| escape(value, Spaces::Keep);
    let bare = |value: Option<&str>| escape(value, Spaces::Escape);
    // LOG-4: free text in these three fields shows its spaces as underscores.
    let joined = |value: Option<&str>| escape(value, Spaces::Underscore);

    put(format_args!(
        "[{}] \"{} {} {}\" {} {} {} {} \"{}\" {} {} {} {}",
        start_time(record.start),
        bare(http.map(|h| h.method.as_str())),
        bare(http.map(|h| h.path.as_str())),
        bare(http.map(|h| h.protocol)),
        record.response_code,
        or_dash(flags(&record.flags)),
        joined(record.response_code_details.as_deref()),
        joined(record.connection_termination_details.as_deref()),
        joined(record.upstream_transport_failure_reason.as_deref()),
        record.bytes_received,
        record.bytes_sent,
        record.duration.as_millis(),
        or_dash(http.and_then(|h| h.upstream_service_time).map(|d| d.as_millis())),
    ));
    put(format_args!(
        " \"{}\" \"{}\" \"{}\" \"{}\" \"{}\" {} {} {} {} {} {}\n",
        quoted(http.and_then(|h| h.x_forwarded_for.as_deref())),
        quoted(http.and_then(|h| h.user_agent.as_deref())),
        quoted(http.and_then(|h| h.request_id.as_deref())),
        quoted(http.and_then(|h| h.authority.as_deref())),
        or_dash(record.upstream_host),
        bare(record.upstream_cluster.as_ref().map(|c| &*c.0)),
        or_dash(record.upstream_local_address),
        record.downstream_local_address,
        record.downstream_remote_address,
        bare(record.requested_server_name.as_deref()),
        bare(record.route_name.as_deref()),
    ));
    line
}

/// The JSON line of `record` (LOG-30, LOG-31), its newline included.
pub(super) fn json(record: &Record) -> String {
    let http = record.http.as_ref();
    let line = JsonLine {
        start_time: start_time(record.start),
        route_name: record.route_name.as_deref().map(cut),
        method: http.map(|h| cut(&h.method)).filter(|m| !m.is_empty()),
        path: http.map(|h| cut(&h.path)).filter(|p| !p.is_empty()),
        protocol: http.map(|h| h.protocol),
        response_code: record.response_code,
        response_flags: flags(&record.flags),
        response_code_details: record.response_code_details.as_deref().map(cut),
        connection_termination_details: record.connection_termination_details.as_deref().map(cut),
        bytes_received: record.bytes_received,
        bytes_sent: record.bytes_sent,
        duration: u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
        upstream_service_time: http
            .and_then(|h| h.upstream_service_time)
            .map(|d| d.as_millis().to_string()),
        x_forwarded_for: http.and_then(|h| h.x_forwarded_for.as_deref()).map(cut),
        user_agent: http.and_then(|h| h.user_agent.as_deref()).map(cut),
        request_id: http.and_then(|h| h.request_id.as_deref()).map(cut),
        authority: http.and_then(|h| h.authority.as_deref()).map(cut),
        upstream_host: record.upstream_host.map(|a| a.to_string()),
        upstream_cluster: record.upstream_cluster.as_ref().map(|c| cut(&c.0)),
        upstream_local_address: record.upstream_local_address.map(|a| a.to_string()),
        downstream_local_address: record.downstream_local_address.to_string(),
        downstream_remote_address: record.downstream_remote_address.to_string(),
        requested_server_name: record.requested_server_name.as_deref().map(cut),
        upstream_transport_failure_reason: record
            .upstream_transport_failure_reason
            .as_deref()
            .map(cut),
    };
    let mut out = Vec::with_capacity(1024);
    line.serialize(&mut serde_json::Serializer::with_formatter(&mut out, AsciiControls))
        .expect("strings and numbers always serialise, and a Vec takes every write");
    out.push(b'\n');
    String::from_utf8(out).expect("serde_json writes UTF-8 only")
}

/// The keys of LOG-30.
#[derive(Serialize)]
struct JsonLine<'a> {
    start_time: String,
    route_name: Option<&'a str>,
    method: Option<&'a str>,
    path: Option<&'a str>,
    protocol: Option<&'a str>,
    response_code: u16,
    response_flags: Option<String>,
    response_code_details: Option<&'a str>,
    connection_termination_details: Option<&'a str>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u64,
    upstream_service_time: Option<String>,
    x_forwarded_for: Option<&'a str>,
    user_agent: Option<&'a str>,
    request_id: Option<&'a str>,
    authority: Option<&'a str>,
    upstream_host: Option<String>,
    upstream_cluster: Option<&'a str>,
    upstream_local_address: Option<String>,
    downstream_local_address: String,
    downstream_remote_address: String,
    requested_server_name: Option<&'a str>,
    upstream_transport_failure_reason: Option<&'a str>,
}

/// Compact JSON that also escapes what JSON would let through but a terminal obeys (T-56).
struct AsciiControls;

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
fn is_hazard(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// What becomes of a space in a text field.
#[derive(Clone, Copy)]
enum Spaces {
    Keep,
    Underscore,
    Escape,
}

/// `value` fit for a text line, `-` if there is none or it is empty.
fn escape(value: Option<&str>, spaces: Spaces) -> String {
    let value = match value {
        None | Some("") => return "-".to_owned(),
        Some(value) => value,
    };
    let mut out = String::with_capacity(value.len().min(FIELD_MAX));
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
        if out.len() > FIELD_MAX {
            out.truncate(before);
            break;
        }
    }
    out
}

/// At most [`FIELD_MAX`] bytes of `value`, cut between characters.
fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(FIELD_MAX)]
}

fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

fn start_time(at: SystemTime) -> String {
    // A year beyond 9999 is the only way to fail, and no clock of a running machine says that.
    OffsetDateTime::from(at).format(START_TIME).unwrap_or_else(|_| "-".to_owned())
}

fn flags(flags: &[Flag]) -> Option<String> {
    (!flags.is_empty())
        .then(|| flags.iter().map(|flag| format!("{flag:?}")).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
#[path = "format_tests.rs"]
pub(super) mod tests;
