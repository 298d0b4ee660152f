//! Steps 1 and 3: the access log, and what it shows while everything passes.

use super::{Action, Try, https};
use crate::shapes::passed;
use crate::world::{CNN, GOOGLE};

/// One connection, whose line comes where the resources want it. `rule` is the sample's number.
pub(super) fn log_line(rule: &'static str) -> Vec<Action> {
    vec![Action::Try(Try {
        command: "curl -sSI https://www.google.com",
        rule,
        expected: "200, and one line on standard output, in Envoy's format",
        exit: 0,
        output: vec!["HTTP/2 200"],
        log: vec![passed(https(GOOGLE), "PassthroughCluster", "…")],
        arrives: vec![(https(GOOGLE), true)],
    })]
}

pub(super) fn allow_any() -> Vec<Action> {
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
            arrives: vec![(https(GOOGLE), true)],
        }),
        Action::Try(Try {
            command: "curl -sI https://edition.cnn.com",
            rule: "SEED-4",
            expected: "200, straight to the dialled address; logged as PassthroughCluster",
            exit: 0,
            output: vec!["HTTP/2 200"],
            log: vec![passed(https(CNN), cluster, "…")],
            arrives: vec![(https(CNN), true)],
        }),
    ]
}
