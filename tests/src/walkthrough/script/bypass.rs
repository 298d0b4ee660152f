//! Step 3-1: around the proxy.

use super::{Action, Try, https};
use crate::shapes::{passed, refused};
use crate::world::GOOGLE;

pub(super) fn bypass() -> Vec<Action> {
    let refusal = |expected| {
        Action::Try(Try {
            command: "curl -sSI https://www.google.com",
            rule: "SEED-18",
            expected,
            exit: 35,
            output: vec!["curl: (35)"],
            log: vec![refused(https(GOOGLE), "www.google.com")],
            arrives: vec![(https(GOOGLE), false)],
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
            arrives: vec![(https(GOOGLE), true)],
        }),
        Action::Verb("bypass del 198.51.100.0/24"),
        refusal("taken back: refused from the next connection on"),
    ]
}
