//! Steps 7 and 8: rules for what is listed.

use super::{Action, Try, http, https};
use crate::shapes::{answered, answered_after, originated, passed, timed_out};
use crate::world::{CNN, HTTPBIN};

pub(super) fn slow_answer() -> Vec<Action> {
    let to = http(HTTPBIN);
    let cluster = "outbound|80||httpbin.org";
    vec![Action::Try(Try {
        command: r#"time curl -o /dev/null -sS -w "%{http_code}\n" http://httpbin.org/delay/5"#,
        rule: "SEED-10",
        expected: "200, after the five seconds that the service takes",
        exit: 0,
        output: vec!["200", "real", "0m5."],
        log: vec![answered_after(5000..6000, to, "GET /delay/5", "httpbin.org", cluster)],
        arrives: vec![(to, true)],
    })]
}

pub(super) fn timeout() -> Vec<Action> {
    let to = http(HTTPBIN);
    let cluster = "outbound|80||httpbin.org";
    vec![Action::Try(Try {
        // The tutorial throws the body away; here one sees what the caller is told.
        command: r#"time curl -sS -w " %{http_code}\n" http://httpbin.org/delay/5"#,
        rule: "SEED-11",
        expected: "504 after three seconds, with a body that says so; flag UT in the log",
        exit: 0,
        output: vec!["upstream request timeout 504", "real", "0m3."],
        log: vec![timed_out(3000..4000, to, "GET /delay/5", "httpbin.org", cluster)],
        arrives: vec![(to, true)],
    })]
}

pub(super) fn redirect() -> Vec<Action> {
    let cluster = "outbound|80||edition.cnn.com";
    vec![
        Action::Try(Try {
            command: "curl -sSL -o /dev/null -D - http://edition.cnn.com/politics | grep HTTP",
            rule: "SEED-12",
            expected: "301, then 200 over TLS: two connections, one line each",
            exit: 0,
            output: vec!["HTTP/1.1 301 Moved Permanently", "HTTP/2 200"],
            log: vec![
                answered(http(CNN), "GET /politics", 301, "edition.cnn.com", cluster, "default"),
                opaque(),
            ],
            arrives: vec![(http(CNN), true), (https(CNN), true)],
        }),
        Action::Try(Try {
            command: "curl -sSL -o /dev/null -D - https://edition.cnn.com/politics | grep HTTP",
            rule: "SEED-12",
            expected: "asked over TLS at once: one connection, one line",
            exit: 0,
            output: vec!["HTTP/2 200"],
            log: vec![opaque()],
            arrives: vec![(http(CNN), false), (https(CNN), true)],
        }),
    ]
}

pub(super) fn tls_origination() -> Vec<Action> {
    let cluster = "outbound|80||edition.cnn.com";
    vec![
        Action::Try(Try {
            command: "curl -sSL -o /dev/null -D - http://edition.cnn.com/politics | grep HTTP",
            rule: "SEED-13",
            expected: "200 at once: one request, one line, upstream port 443; no plain text leaves",
            exit: 0,
            output: vec!["HTTP/1.1 200 OK"],
            log: vec![originated(
                http(CNN),
                https(CNN),
                "GET /politics",
                "edition.cnn.com",
                cluster,
            )],
            arrives: vec![(http(CNN), false), (https(CNN), true)],
        }),
        Action::Try(Try {
            command: "curl -sSL -o /dev/null -D - https://edition.cnn.com/politics | grep HTTP",
            rule: "SEED-14",
            expected: "what is TLS already passes unopened: the rule is for port 80 only",
            exit: 0,
            output: vec!["HTTP/2 200"],
            log: vec![opaque()],
            arrives: vec![(http(CNN), false), (https(CNN), true)],
        }),
    ]
}

/// The line of a TLS connection to edition.cnn.com.
fn opaque() -> String {
    passed(https(CNN), "outbound|443||edition.cnn.com", "edition.cnn.com")
}
