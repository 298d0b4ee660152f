//! The line shapes of the specification (LOG-40…LOG-46) for the workload of a [`crate::world`],
//! in the form that [`crate::log`] compares with. Refused ones carry the name, and in field 8
//! the reason, as the strict profile adds.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::log::RANGE;

/// TLS (or any TCP) that passed: LOG-40 with `PassthroughCluster`, LOG-45 with an
/// `outbound|…` cluster, and the bypass line with `BypassCluster`.
#[must_use]
pub fn passed(to: SocketAddr, cluster: &str, sni: &str) -> String {
    passed_by(to, to, cluster, sni)
}

/// [`passed`], led to `upstream` instead.
#[must_use]
pub fn passed_by(to: SocketAddr, upstream: SocketAddr, cluster: &str, sni: &str) -> String {
    let from = workload(to);
    format!(
        r#""- - -" 0 - - - "-" …+ …+ … - "-" "-" "-" "-" "{upstream}" {cluster} {from} {to} {from} {sni} -"#
    )
}

/// TLS or TCP that was refused: LOG-43.
#[must_use]
pub fn refused(to: SocketAddr, sni: &str) -> String {
    let from = workload(to);
    format!(
        r#""- - -" 0 UH - … "-" 0 0 … - "-" "-" "-" "-" "-" BlackHoleCluster - {to} {from} {sni} -"#
    )
}

/// A request that was answered by its upstream: LOG-44 with route `default` and an `outbound|…`
/// cluster, LOG-41 with `allow_any` and `PassthroughCluster`. `request` is `GET /path`.
#[must_use]
pub fn answered(
    to: SocketAddr,
    request: &str,
    code: u16,
    authority: &str,
    cluster: &str,
    route: &str,
) -> String {
    answered_by(to, to, request, code, authority, cluster, route)
}

/// [`answered`], led to `upstream` instead.
#[must_use]
pub fn answered_by(
    to: SocketAddr,
    upstream: SocketAddr,
    request: &str,
    code: u16,
    authority: &str,
    cluster: &str,
    route: &str,
) -> String {
    let ends = ends(to, upstream, authority, cluster, route);
    format!(r#""{request} HTTP/1.1" {code} - via_upstream - "-" 0 … … … {ends}"#)
}

/// [`answered`] with 200 and route `default`, after so many milliseconds.
#[must_use]
pub fn answered_after(
    milliseconds: Range<u64>,
    to: SocketAddr,
    request: &str,
    authority: &str,
    cluster: &str,
) -> String {
    let ends = ends(to, to, authority, cluster, "default");
    let time = within(&milliseconds);
    format!(r#""{request} HTTP/1.1" 200 - via_upstream - "-" 0 …+ {time} {time} {ends}"#)
}

/// A request whose rule's time was over: LOG-46. The rule has no name.
#[must_use]
pub fn timed_out(
    milliseconds: Range<u64>,
    to: SocketAddr,
    request: &str,
    authority: &str,
    cluster: &str,
) -> String {
    let ends = ends(to, to, authority, cluster, "-");
    let time = within(&milliseconds);
    format!(r#""{request} HTTP/1.1" 504 UT response_timeout - "-" 0 24 {time} - {ends}"#)
}

/// A plain request that was sent on in TLS, to `upstream`, and answered with 200: LOG-44 with two
/// places.
#[must_use]
pub fn originated(
    to: SocketAddr,
    upstream: SocketAddr,
    request: &str,
    authority: &str,
    cluster: &str,
) -> String {
    let ends = ends(to, upstream, authority, cluster, "default");
    format!(r#""{request} HTTP/1.1" 200 - via_upstream - "-" 0 …+ … … {ends}"#)
}

/// A request that was refused with 502: LOG-42, with an explaining body of some length.
#[must_use]
pub fn blocked(to: SocketAddr, request: &str, authority: &str) -> String {
    let from = workload(to);
    format!(
        r#""{request} HTTP/1.1" 502 - direct_response … "-" 0 …+ … - "-" "curl/…" "…-…-…-…-…" "{authority}" "-" - - {to} {from} - block_all"#
    )
}

/// The last part of a request's line, from X-FORWARDED-FOR on: who asked whom, and where it went.
fn ends(
    to: SocketAddr,
    upstream: SocketAddr,
    authority: &str,
    cluster: &str,
    route: &str,
) -> String {
    let from = workload(to);
    format!(
        r#""-" "curl/…" "…-…-…-…-…" "{authority}" "{upstream}" {cluster} {from} {to} {from} - {route}"#
    )
}

fn within(range: &Range<u64>) -> String {
    format!("{}{RANGE}{}", range.start, range.end)
}

/// The workload's address, any port, in the family of the destination.
fn workload(to: SocketAddr) -> String {
    match to.ip() {
        IpAddr::V4(_) => format!("{}:…", crate::world::WORKLOAD_V4),
        IpAddr::V6(_) => format!("[{}]:…", crate::world::WORKLOAD_V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Line;

    /// Every shape is itself in the format: `expect` would panic otherwise.
    #[test]
    fn the_shapes_fit_the_lines_of_the_specification() {
        let to = SocketAddr::from(([203, 0, 113, 10], 80));
        let time = "[2026-01-02T03:04:05.678Z] ";
        let (id, from) = ("fe4df2bc-cf84-990c-a870-8e68b1380541", "10.77.0.2:47084");
        let tls = SocketAddr::from(([203, 0, 113, 10], 443));
        let to6 = "[2001:db8:1::40]:443".parse().expect("an address");
        let from6 = "[2001:db8:77::2]:40000";
        let cases = [
            (
                passed(to, "outbound|80||h", "-"),
                format!(
                    r#""- - -" 0 - - - "-" 9 8 7 - "-" "-" "-" "-" "{to}" outbound|80||h {from} {to} {from} - -"#
                ),
            ),
            (
                refused(to6, "h"),
                format!(
                    r#""- - -" 0 UH - not_registered "-" 0 0 1 - "-" "-" "-" "-" "-" BlackHoleCluster - {to6} {from6} h -"#
                ),
            ),
            (
                answered(to, "GET /", 200, "h", "PassthroughCluster", "allow_any"),
                format!(
                    r#""GET / HTTP/1.1" 200 - via_upstream - "-" 0 9 8 7 "-" "curl/8" "{id}" "h" "{to}" PassthroughCluster {from} {to} {from} - allow_any"#
                ),
            ),
            (
                answered_after(5000..6000, to, "GET /", "h", "outbound|80||h"),
                format!(
                    r#""GET / HTTP/1.1" 200 - via_upstream - "-" 0 9 5004 5003 "-" "curl/8" "{id}" "h" "{to}" outbound|80||h {from} {to} {from} - default"#
                ),
            ),
            (
                timed_out(3000..4000, to, "GET /", "h", "outbound|80||h"),
                format!(
                    r#""GET / HTTP/1.1" 504 UT response_timeout - "-" 0 24 3001 - "-" "curl/8" "{id}" "h" "{to}" outbound|80||h {from} {to} {from} - -"#
                ),
            ),
            (
                originated(to, tls, "GET /", "h", "outbound|80||h"),
                format!(
                    r#""GET / HTTP/1.1" 200 - via_upstream - "-" 0 9 8 7 "-" "curl/8" "{id}" "h" "{tls}" outbound|80||h {from} {to} {from} - default"#
                ),
            ),
            (
                blocked(to, "GET /", "h"),
                format!(
                    r#""GET / HTTP/1.1" 502 - direct_response - "-" 0 9 0 - "-" "curl/8" "{id}" "h" "-" - - {to} {from} - block_all"#
                ),
            ),
        ];
        for (shape, line) in cases {
            let line = Line::parse(&format!("{time}{line}")).expect("a line");
            assert_eq!(line.expect(&shape), Ok(()));
        }
    }
}
