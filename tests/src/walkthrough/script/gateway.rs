//! Step 10: only an egress gateway leads out.

use std::net::{IpAddr, SocketAddr};

use super::{Action, Through, Try, http, https};
use crate::gateway::{FIRST, OUTSIDE};
use crate::shapes::{answered_by, passed, passed_by, refused};
use crate::world::{CNN, GOOGLE, HTTPBIN, WORKLOAD_V4};

/// The file of both, the node and the gateway.
pub(super) const FILE: &str = "examples/walkthrough/10-egress-gateway.yaml";

/// Flags of `interceptor gateway`.
pub(super) const GATEWAY: [&str; 8] = [
    "--mesh-config",
    super::REGISTRY_ONLY[1],
    "-f",
    FILE,
    "--namespace",
    "istio-system",
    "--labels",
    "istio=egressgateway",
];

const HOST: &str = "edition.cnn.com";

pub(super) fn one_way_out() -> Vec<Action> {
    vec![
        Action::Through(Through {
            tried: Try {
                command: "curl -sSL -o /dev/null -D - http://edition.cnn.com/politics | grep HTTP",
                rule: "SEED-17",
                expected: "301, then 200: each through the gateway, with a line on both sides",
                exit: 0,
                output: vec!["HTTP/1.1 301 Moved Permanently", "HTTP/2 200"],
                log: vec![
                    answered_by(http(CNN), at(8080), "GET /politics", 301, HOST, &led(80), "-"),
                    passed_by(https(CNN), at(8443), &led(443), HOST),
                ],
                arrives: vec![(http(CNN), true), (https(CNN), true)],
            },
            gateway: vec![
                format!(
                    r#""GET /politics HTTP/1.1" 301 - via_upstream - "-" 0 … … … "-" "curl/…" "…-…-…-…-…" "{HOST}" "{to}" outbound|80||{HOST} {own}:… {} {from}:… - -"#,
                    at(8080),
                    to = http(CNN),
                    own = OUTSIDE,
                    from = WORKLOAD_V4,
                ),
                format!(
                    r#""- - -" 0 - - - "-" …+ …+ … - "-" "-" "-" "-" "{to}" outbound|443||{HOST} {own}:… {} {from}:… {HOST} -"#,
                    at(8443),
                    to = https(CNN),
                    own = OUTSIDE,
                    from = WORKLOAD_V4,
                ),
            ],
        }),
        Action::Try(Try {
            command: "curl -sSI https://www.google.com",
            rule: "SEED-17",
            expected: "not listed: refused by the node, and the gateway is not asked",
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(GOOGLE), "www.google.com")],
            arrives: vec![(https(GOOGLE), false)],
        }),
        nowhere(
            "curl -sS -m 2 http://httpbin.org/headers",
            "listed, but not led to the gateway: it goes direct, and direct leads nowhere",
            http(HTTPBIN),
            format!(
                r#""GET /headers HTTP/1.1" 0 DC … … "-" 0 0 … - "-" "curl/…" "…-…-…-…-…" "httpbin.org" "…" outbound|80||httpbin.org … {} {WORKLOAD_V4}:… - …"#,
                http(HTTPBIN)
            ),
        ),
        Action::Verb("bypass add 203.0.113.0/24"),
        nowhere(
            "curl -sS -m 2 https://edition.cnn.com/politics",
            "the bypass leads round both, and nowhere: only the gateway has a route out",
            https(CNN),
            format!(
                r#""- - -" 0 UF,URX - … "-" 0 0 … - "-" "-" "-" "-" "{to}" BypassCluster - {to} … - -"#,
                to = https(CNN)
            ),
        ),
        Action::Verb("bypass del 203.0.113.0/24"),
        Action::Verb("bypass add 10.77.0.1/32"),
        Action::Through(Through {
            tried: Try {
                command: r"curl -sS -w '%{http_code}\n' -H 'Host: httpbin.org' http://10.77.0.1:8080/",
                rule: "GW-5",
                expected: "round the node, to the gateway itself: it serves what its Gateway lists, 404",
                exit: 0,
                output: vec!["404"],
                log: vec![passed(at(8080), "BypassCluster", "-")],
                arrives: vec![(http(HTTPBIN), false)],
            },
            gateway: vec![format!(
                r#""GET / HTTP/1.1" 404 NR route_not_found … "-" 0 … … - "-" "curl/…" "…-…-…-…-…" "httpbin.org" "-" - - {} {WORKLOAD_V4}:… - -"#,
                at(8080)
            )],
        }),
        Action::Verb("bypass del 10.77.0.1/32"),
    ]
}

/// What has no way out, and has this line.
fn nowhere(command: &'static str, expected: &'static str, to: SocketAddr, line: String) -> Action {
    Action::Try(Try {
        command,
        rule: "SEED-17",
        expected,
        exit: 28,
        output: vec!["curl: (28)"],
        log: vec![line],
        arrives: vec![(to, false)],
    })
}

/// The gateway's own port.
fn at(port: u16) -> SocketAddr {
    let address: IpAddr = FIRST.ip();
    SocketAddr::new(address, port)
}

/// The cluster that leads to the gateway.
fn led(port: u16) -> String {
    format!("outbound|{port}|cnn|istio-egressgateway.istio-system.svc.cluster.local")
}
