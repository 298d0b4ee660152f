//! TEL-5: what passes which filter.

use std::time::Duration;

use super::*;
use crate::account::format::tests::{http_record, tcp_record};
use crate::account::{Flag, More};
use crate::decide::ClusterName;

/// Each row: the expression, and whether it lets through a forwarded request, a request that got a
/// 503, a relayed connection, and a refused one.
#[test]
fn expressions() {
    let failed = Record {
        response_code: 503,
        flags: vec![Flag::URX, Flag::UF],
        duration: Duration::from_secs(4),
        more: More { request_headers: vec![("x-team".into(), "blue".into())], ..More::default() },
        ..http_record()
    };
    let refused = Record {
        upstream_cluster: Some(ClusterName::black_hole()),
        flags: vec![Flag::UH],
        requested_server_name: Some("www.google.com".into()),
        ..tcp_record()
    };
    let records = [http_record(), failed, tcp_record(), refused];
    for (expression, expected) in [
        ("true", [true, true, true, true]),
        ("false", [false, false, false, false]),
        ("response.code >= 400", [false, true, false, false]),
        ("!has(request.path)", [false, false, true, true]),
        ("!has(request.path) || response.code >= 400", [false, true, true, true]),
        ("has(response.code) && response.code >= 400", [false, true, false, false]),
        ("xds.cluster_name == 'BlackHoleCluster'", [false, false, false, true]),
        ("xds.route_name == \"allow_any\"", [true, true, false, false]),
        ("connection.requested_server_name.endsWith('google.com')", [false, false, false, true]),
        ("response.flags != 0", [false, true, false, true]),
        // UH is bit 1, UF bit 5, URX bit 15.
        ("response.flags == 2", [false, false, false, true]),
        ("response.flags == 32768 + 32", [false, true, false, false]),
        ("request.headers['x-team'] == 'blue'", [false, true, false, false]),
        ("request.headers['user-agent'].startsWith('curl/')", [true, true, false, false]),
        ("'user-agent' in request.headers", [true, true, false, false]),
        ("request.useragent.matches('^curl/[0-9.]+$')", [true, true, false, false]),
        ("request.method in ['GET', 'HEAD']", [true, true, false, false]),
        ("request.host.contains('example')", [true, true, false, false]),
        ("request.duration > duration('3s')", [false, true, false, false]),
        ("request.time < timestamp('2030-01-01T00:00:00Z')", [true, true, false, false]),
        ("destination.port == 443", [false, false, true, true]),
        ("source.address.startsWith('10.1.')", [true, true, true, true]),
        ("size('abc') + 2 * 3 - 1 == 8", [true, true, true, true]),
        // Evaluation errors and values that are not booleans count as false.
        ("nonsense.field == 1", [false, false, false, false]),
        ("1 / 0 == 1", [false, false, false, false]),
        ("response.size", [false, false, false, false]),
        ("'a' + 1 == 'a1'", [false, false, false, false]),
    ] {
        let filter = Filter::parse(expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
        assert_eq!(records.each_ref().map(|r| filter.admits(r)), expected, "{expression}");
    }
}

#[test]
fn mistakes_have_places() {
    for (expression, line, column) in [
        (")++++", 1, 1),
        ("1 +", 1, 4),
        ("response.code >= 400 &&\n  == 3", 2, 3),
        ("", 1, 1),
        ("'open", 1, 1),
    ] {
        let error = Filter::parse(expression).expect_err(expression);
        assert_eq!((error.line, error.column), (line, column), "{expression}: {error}");
        assert!(!error.message.contains("expecting {"), "{error}");
    }
}

/// An expression of any shape costs a bounded stack: the parser recurses.
#[test]
fn depth_is_bounded() {
    for deep in ["(", "!", "-", "[", "{1:", "a?b:", "a.b(", "has("] {
        Filter::parse(&deep.repeat(1000)).expect_err(deep);
        let most = deep.repeat(MAX_NESTING);
        if let Ok(filter) = Filter::parse(&format!("{most}true")) {
            filter.admits(&tcp_record());
        }
    }
    for (open, close) in [("(", ")"), ("!(", ")"), ("[", "][0]"), ("true ? true : (", ")")] {
        let times = MAX_NESTING / nesting(open);
        let deep = format!("{}true{}", open.repeat(times), close.repeat(times));
        assert!(
            Filter::parse(&deep).is_err()
                || Filter::parse(&deep).expect("parses").admits(&tcp_record())
        );
    }
    Filter::parse(&format!("{}true", "true || ".repeat(1000))).expect_err("too long");
}

/// Only the headers that an expression can look at are carried.
#[test]
fn headers_are_asked_for() {
    for (expression, request, response) in [
        ("response.code >= 400", false, false),
        ("request.headers['x-a'] == 'b'", true, false),
        ("response.headers['x-a'] == 'b'", false, true),
    ] {
        let mut wanted = Wanted::default();
        Filter::parse(expression).expect("parses").want(&mut wanted);
        let asked = [!wanted.request.is_empty(), !wanted.response.is_empty()];
        assert_eq!(asked, [request, response], "{expression}");
    }
}
