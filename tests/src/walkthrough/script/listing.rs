//! Steps 4, 5, 6 and 9: only what is listed.

use super::{Action, Try, http, https};
use crate::shapes::{answered, blocked, passed, refused};
use crate::world::{CNN, GOOGLE, HTTPBIN, WIKIPEDIA_DE, WIKIPEDIA_EN};

pub(super) fn registry_only() -> Vec<Action> {
    vec![
        Action::Try(Try {
            command: "curl -sSI https://www.google.com",
            rule: "SEED-5",
            expected: "TLS refused (curl exits 35); the log names the host; nothing leaves",
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(GOOGLE), "www.google.com")],
            arrives: vec![(https(GOOGLE), false)],
        }),
        Action::Try(Try {
            command: "curl -sI https://edition.cnn.com",
            rule: "SEED-5",
            expected: "TLS refused, silently with -s; the log names the host; nothing leaves",
            exit: 35,
            output: vec![],
            log: vec![refused(https(CNN), "edition.cnn.com")],
            arrives: vec![(https(CNN), false)],
        }),
        Action::Try(Try {
            command: r"curl -sS -w '%{http_code}\n' http://httpbin.org/headers",
            rule: "SEED-6",
            expected: "502 with a body that explains; route block_all; nothing leaves",
            exit: 0,
            output: vec!["httpbin.org", "502"],
            log: vec![blocked(http(HTTPBIN), "GET /headers", "httpbin.org")],
            arrives: vec![(http(HTTPBIN), false)],
        }),
    ]
}

pub(super) fn http_service() -> Vec<Action> {
    let cluster = "outbound|80||httpbin.org";
    vec![Action::Try(Try {
        command: "curl -sS http://httpbin.org/headers",
        rule: "SEED-7",
        expected: "200; the upstream also sees a request id; cluster and route are named",
        exit: 0,
        output: vec!["\"headers\"", "\"host\": \"httpbin.org\"", "\"x-request-id\""],
        log: vec![answered(http(HTTPBIN), "GET /headers", 200, "httpbin.org", cluster, "default")],
        arrives: vec![(http(HTTPBIN), true)],
    })]
}

pub(super) fn https_service() -> Vec<Action> {
    vec![
        Action::Try(Try {
            command: "curl -sSI https://www.google.com",
            rule: "SEED-8",
            expected: "200; the log has the cluster and the name in the hello",
            exit: 0,
            output: vec!["HTTP/2 200"],
            log: vec![passed(https(GOOGLE), "outbound|443||www.google.com", "www.google.com")],
            arrives: vec![(https(GOOGLE), true)],
        }),
        Action::Try(Try {
            command: "curl -sSI https://edition.cnn.com",
            rule: "SEED-9",
            expected: "not listed: TLS refused (35), the name in the log; nothing leaves",
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(CNN), "edition.cnn.com")],
            arrives: vec![(https(CNN), false)],
        }),
        Action::Try(Try {
            command: r"curl -sS -w '%{http_code}\n' http://www.google.com/",
            rule: "SEED-9",
            expected: "listed for HTTPS only: plain HTTP gets 502; nothing leaves",
            exit: 0,
            output: vec!["www.google.com", "502"],
            log: vec![blocked(http(GOOGLE), "GET /", "www.google.com")],
            arrives: vec![(http(GOOGLE), false)],
        }),
    ]
}

pub(super) fn wildcard() -> Vec<Action> {
    let cluster = "outbound|443||*.wikipedia.org";
    vec![
        Action::Try(Try {
            command: concat!(
                r#"curl -s https://en.wikipedia.org/wiki/Main_Page | grep -o "<title>.*</title>"; "#,
                r"curl -s https://de.wikipedia.org/wiki/Wikipedia:Hauptseite",
                r#" | grep -o "<title>.*</title>""#,
            ),
            rule: "SEED-15",
            expected: "both titles; the cluster keeps its wildcard, the name is the asked one",
            exit: 0,
            output: vec![
                "<title>Wikipedia, the free encyclopedia</title>",
                "<title>Wikipedia – Die freie Enzyklopädie</title>",
            ],
            log: vec![
                passed(https(WIKIPEDIA_EN), cluster, "en.wikipedia.org"),
                passed(https(WIKIPEDIA_DE), cluster, "de.wikipedia.org"),
            ],
            arrives: vec![(https(WIKIPEDIA_EN), true), (https(WIKIPEDIA_DE), true)],
        }),
        Action::Try(Try {
            command: "curl -sSI https://wikipedia.org",
            rule: "SEED-16",
            expected: "the wildcard doesn't cover the domain itself: refused; nothing leaves",
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(WIKIPEDIA_EN), "wikipedia.org")],
            arrives: vec![(https(WIKIPEDIA_EN), false)],
        }),
        Action::Try(Try {
            command: "curl -sSI --connect-to ::en.wikipedia.org: https://v4.example.com",
            rule: "SEED-16",
            expected: "another name in the hello to the same address: refused; nothing leaves",
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(WIKIPEDIA_EN), "v4.example.com")],
            arrives: vec![(https(WIKIPEDIA_EN), false)],
        }),
    ]
}
