//! What operators write about the access log, and what strangers get into it.

use std::time::{Duration, SystemTime};

use crate::account::{Filter, Format, HttpFields, More, Record, Substitution, TlsFields};

/// A format, then a newline, then what a client and an upstream say about themselves: whatever they
/// say, the format's own lines are all there are, and nothing in them steers a terminal (T-56).
pub(super) fn format(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let (format, said) = text.split_once('\u{1}').unwrap_or((text, ""));
    let (plain, hostile) = (record("x"), record(said));
    if let Ok(read) = Format::text(format) {
        let (plain, hostile) = (read.line(&plain), read.line(&hostile));
        assert_eq!(steering(&hostile), steering(&plain), "{hostile:?}");
        assert!(hostile.ends_with('\n'));
        assert!(hostile.len() <= bound(format), "{} of {format:?}", hostile.len());
    }
    if let Ok(read) = Format::json_text(format) {
        let line = read.line(&hostile);
        assert_eq!(steering(&line), "\n", "{line:?}");
        assert!(line.ends_with('\n') && line.len() <= 6 * bound(format), "{}", line.len());
        let _: serde_json::Map<_, _> = serde_json::from_str(&line).expect("an object a line");
    }
    if let Ok(read) = Substitution::parse(format) {
        let none = http::HeaderMap::new();
        let _ = read.value(&hostile, &none, None);
    }
}

/// A CEL expression, then what it is asked about: it says yes or no.
pub(super) fn filter(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let (expression, said) = text.split_once('\u{1}').unwrap_or((text, "a.test"));
    match Filter::parse(expression) {
        Ok(filter) => {
            let connection = Record { http: None, ..record(said) };
            let _ = (filter.admits(&record(said)), filter.admits(&connection));
        }
        Err(error) => {
            assert!(error.line > 0 && error.column > 0 && !error.message.is_empty(), "{error:?}");
        }
    }
}

/// What must not be in a line: controls, line ends of any kind, changes of direction, and what
/// cannot be seen.
fn steering(line: &str) -> String {
    let steers = |c: &char| {
        matches!(u32::from(*c),
            0..0x20 | 0x7f..0xa0 | 0x61c | 0x200b..=0x200f | 0x2028..=0x202e | 0x2066..=0x2069 | 0xfeff)
    };
    line.chars().filter(steers).collect()
}

/// More than a line of this format can be long: a field has 1 KiB, a conversion of a time is short.
fn bound(format: &str) -> usize {
    1 + format.len() * 32 + format.matches('%').count() * 1024
}

/// A record in which everything that a stranger can say is `said`.
fn record(said: &str) -> Record {
    let some = || Some(said.to_owned());
    let header = |name: &str| (name.to_owned(), said.to_owned());
    let start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_721_988_041_036);
    let [dst, src] = ["192.0.2.1:80", "10.1.0.7:51310"].map(|at| at.parse().expect("an address"));
    Record {
        http: Some(HttpFields {
            method: said.to_owned(),
            path: format!("/{said}?a={said}&b"),
            protocol: "HTTP/1.1",
            upstream_service_time: Some(Duration::from_millis(12)),
            x_forwarded_for: some(),
            user_agent: some(),
            request_id: some(),
            authority: some(),
        }),
        response_code: 200,
        response_code_details: Some(said.to_owned().into()),
        connection_termination_details: Some(said.to_owned().into()),
        upstream_transport_failure_reason: some(),
        duration: Duration::from_millis(12),
        upstream_host: Some(dst),
        requested_server_name: some(),
        more: More {
            request_headers: vec![header("x-a")],
            response_headers: vec![header("x-a")],
            response_trailers: vec![header("x-a")],
            attempts: Some(1),
            connection_id: Some(7),
            upstream_tls: Some(TlsFields {
                peer_subject: some(),
                peer_issuer: some(),
                peer_dns_san: some(),
                ..TlsFields::default()
            }),
            ..More::default()
        },
        ..Record::new(start, dst, src)
    }
}
