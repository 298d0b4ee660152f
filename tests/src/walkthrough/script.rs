//! What the walkthrough plays: the tutorial's steps, its commands, and what must come of them.

use std::net::{IpAddr, SocketAddr};

use crate::shapes::{answered, blocked, passed, refused};
use crate::world::{CNN, GOOGLE, HTTPBIN, WIKIPEDIA_DE, WIKIPEDIA_EN};

/// Flags that turn the tutorial's step 4 on.
pub(super) const REGISTRY_ONLY: [&str; 2] =
    ["--mesh-config", "examples/walkthrough/04-registry-only.yaml"];

/// The tutorial's ServiceEntries, as files.
pub(super) const ENTRIES: [&str; 4] = [
    "examples/walkthrough/05-httpbin.yaml",
    "examples/walkthrough/06-google.yaml",
    "examples/walkthrough/08-cnn.yaml",
    "examples/walkthrough/09-wikipedia.yaml",
];

/// One step of the tutorial: a policy, and commands that are tried under it.
#[derive(Debug)]
pub(super) struct Step {
    /// The tutorial's number.
    pub(super) chapter: &'static str,
    /// What the step shows.
    pub(super) title: &'static str,
    /// Flags of `interceptor run`.
    pub(super) flags: Vec<&'static str>,
    /// What is tried, in order.
    pub(super) actions: Vec<Action>,
}

/// One thing that the user types.
#[derive(Debug)]
pub(super) enum Action {
    /// A command of the workload.
    Try(Try),
    /// A verb of the product while it runs: `bypass add …`. The step then runs as one
    /// `interceptor run`, and its commands through `interceptor exec`.
    Verb(&'static str),
}

/// One command of the workload and what must come of it.
#[derive(Debug)]
pub(super) struct Try {
    /// As typed, for `sh`.
    pub(super) command: &'static str,
    /// Which sample of the specification it is.
    pub(super) rule: &'static str,
    /// The result in words, for the reader.
    pub(super) expected: &'static str,
    /// The exit status.
    pub(super) exit: i32,
    /// What the output (standard output, then standard error) must contain, in this order.
    pub(super) output: Vec<&'static str>,
    /// The shape of every access-log line (see [`crate::log`]).
    pub(super) log: Vec<String>,
    /// Whether a connection to this place must have been seen at the far side, or must not.
    pub(super) arrives: (SocketAddr, bool),
}

/// The whole walkthrough.
#[must_use]
pub(super) fn script() -> Vec<Step> {
    let with = |file: &'static str| [&REGISTRY_ONLY[..], &["-f", file]].concat();
    vec![
        Step {
            chapter: "3",
            title: "ALLOW_ANY: everything passes, and one sees what leaves",
            flags: vec!["--outbound", "allow-any"],
            actions: allow_any(),
        },
        Step {
            chapter: "4",
            title: "REGISTRY_ONLY: what is not listed is refused",
            flags: REGISTRY_ONLY.to_vec(),
            actions: registry_only(),
        },
        Step {
            chapter: "5",
            title: "An external HTTP service",
            flags: with(ENTRIES[0]),
            actions: http_service(),
        },
        Step {
            chapter: "6",
            title: "An external HTTPS service",
            flags: with(ENTRIES[1]),
            actions: https_service(),
        },
        Step {
            chapter: "8.1",
            title: "Plain HTTP that is redirected to HTTPS",
            flags: with(ENTRIES[2]),
            actions: redirect(),
        },
        Step {
            chapter: "9",
            title: "A wildcard host",
            flags: with(ENTRIES[3]),
            actions: wildcard(),
        },
        Step {
            chapter: "3-1",
            title: "The third way: around the proxy by address range, while it runs",
            flags: REGISTRY_ONLY.to_vec(),
            actions: bypass(),
        },
    ]
}

fn allow_any() -> Vec<Action> {
    // Strict may print the name that it noticed in passing, so field 23 is free (GAP-4).
    let cluster = "PassthroughCluster";
    vec![
        Action::Try(Try {
            command: "curl -sSI https://www.google.com",
            rule: "SEED-4",
            expected: "200, straight to the dialled address; logged as PassthroughCluster",
            exit: 0,
            output: vec!["HTTP/2 200"],
            log: vec![passed(https(GOOGLE), cluster, "…")],
            arrives: (https(GOOGLE), true),
        }),
        Action::Try(Try {
            command: "curl -sI https://edition.cnn.com",
            rule: "SEED-4",
            expected: "200, straight to the dialled address; logged as PassthroughCluster",
            exit: 0,
            output: vec!["HTTP/2 200"],
            log: vec![passed(https(CNN), cluster, "…")],
            arrives: (https(CNN), true),
        }),
    ]
}

fn registry_only() -> Vec<Action> {
    vec![
        Action::Try(Try {
            command: "curl -sSI https://www.google.com",
            rule: "SEED-5",
            expected: "TLS refused (curl exits 35); the log names the host; nothing leaves",
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(GOOGLE), "www.google.com")],
            arrives: (https(GOOGLE), false),
        }),
        Action::Try(Try {
            command: "curl -sI https://edition.cnn.com",
            rule: "SEED-5",
            expected: "TLS refused, silently with -s; the log names the host; nothing leaves",
            exit: 35,
            output: vec![],
            log: vec![refused(https(CNN), "edition.cnn.com")],
            arrives: (https(CNN), false),
        }),
        Action::Try(Try {
            command: r"curl -sS -w '%{http_code}\n' http://httpbin.org/headers",
            rule: "SEED-6",
            expected: "502 with a body that explains; route block_all; nothing leaves",
            exit: 0,
            output: vec!["httpbin.org", "502"],
            log: vec![blocked(http(HTTPBIN), "GET /headers", "httpbin.org")],
            arrives: (http(HTTPBIN), false),
        }),
    ]
}

fn http_service() -> Vec<Action> {
    let cluster = "outbound|80||httpbin.org";
    vec![Action::Try(Try {
        command: "curl -sS http://httpbin.org/headers",
        rule: "SEED-7",
        expected: "200; the upstream also sees a request id; cluster and route are named",
        exit: 0,
        output: vec!["\"headers\"", "\"host\": \"httpbin.org\"", "\"x-request-id\""],
        log: vec![answered(http(HTTPBIN), "GET /headers", 200, "httpbin.org", cluster, "default")],
        arrives: (http(HTTPBIN), true),
    })]
}

fn https_service() -> Vec<Action> {
    vec![
        Action::Try(Try {
            command: "curl -sSI https://www.google.com",
            rule: "SEED-8",
            expected: "200; the log has the cluster and the name in the hello",
            exit: 0,
            output: vec!["HTTP/2 200"],
            log: vec![passed(https(GOOGLE), "outbound|443||www.google.com", "www.google.com")],
            arrives: (https(GOOGLE), true),
        }),
        Action::Try(Try {
            command: "curl -sSI https://edition.cnn.com",
            rule: "SEED-9",
            expected: "not listed: TLS refused (35), the name in the log; nothing leaves",
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(CNN), "edition.cnn.com")],
            arrives: (https(CNN), false),
        }),
        Action::Try(Try {
            command: r"curl -sS -w '%{http_code}\n' http://www.google.com/",
            rule: "SEED-9",
            expected: "listed for HTTPS only: plain HTTP gets 502; nothing leaves",
            exit: 0,
            output: vec!["www.google.com", "502"],
            log: vec![blocked(http(GOOGLE), "GET /", "www.google.com")],
            arrives: (http(GOOGLE), false),
        }),
    ]
}

fn redirect() -> Vec<Action> {
    let tls = || passed(https(CNN), "outbound|443||edition.cnn.com", "edition.cnn.com");
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
                tls(),
            ],
            arrives: (http(CNN), true),
        }),
        Action::Try(Try {
            command: "curl -sSL -o /dev/null -D - https://edition.cnn.com/politics | grep HTTP",
            rule: "SEED-12",
            expected: "asked over TLS at once: one connection, one line",
            exit: 0,
            output: vec!["HTTP/2 200"],
            log: vec![tls()],
            arrives: (https(CNN), true),
        }),
    ]
}

fn wildcard() -> Vec<Action> {
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
            arrives: (https(WIKIPEDIA_DE), true),
        }),
        Action::Try(Try {
            command: "curl -sSI https://wikipedia.org",
            rule: "SEED-16",
            expected: "the wildcard doesn't cover the domain itself: refused; nothing leaves",
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(WIKIPEDIA_EN), "wikipedia.org")],
            arrives: (https(WIKIPEDIA_EN), false),
        }),
        Action::Try(Try {
            command: "curl -sSI --connect-to ::en.wikipedia.org: https://v4.example.com",
            rule: "SEED-16",
            expected: "another name in the hello to the same address: refused; nothing leaves",
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(WIKIPEDIA_EN), "v4.example.com")],
            arrives: (https(WIKIPEDIA_EN), false),
        }),
    ]
}

fn bypass() -> Vec<Action> {
    let refusal = |expected| {
        Action::Try(Try {
            command: "curl -sSI https://www.google.com",
            rule: "SEED-18",
            expected,
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(GOOGLE), "www.google.com")],
            arrives: (https(GOOGLE), false),
        })
    };
    vec![
        refusal("not listed, not bypassed: refused"),
        Action::Verb("bypass add 198.51.100.0/24"),
        Action::Try(Try {
            command: "curl -sSI https://www.google.com",
            rule: "SEED-18",
            expected: "200, direct, at native speed, and still one line: BypassCluster",
            exit: 0,
            output: vec!["HTTP/2 200"],
            log: vec![passed(https(GOOGLE), "BypassCluster", "…")],
            arrives: (https(GOOGLE), true),
        }),
        Action::Verb("bypass del 198.51.100.0/24"),
        refusal("taken back: refused from the next connection on"),
    ]
}

fn http(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 80)
}

fn https(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 443)
}
