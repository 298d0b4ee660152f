//! Whether an interceptor does all that it should: what a readiness probe asks.

use super::StatusReport;
use crate::kernel::{HOOKS, Side};

/// What is not as it should be, in words; nothing: it is ready. `single_layer`: namespaces without the
/// interface layer count as covered.
pub fn amiss(report: &StatusReport, single_layer: bool) -> Vec<String> {
    let mut found = Vec::new();
    if report.generation == 0 {
        found.push("no policy is in force yet".to_owned());
    }
    let attached = |name: &str| report.attachments.iter().any(|at| at.hook == name);
    // The interface layer is a matter of each namespace.
    let hooks = HOOKS.iter().filter(|hook| hook.side != Side::Interface);
    let absent: Vec<_> = hooks.map(|hook| hook.name).filter(|name| !attached(name)).collect();
    if !absent.is_empty() {
        found.push(format!("not attached: {}", absent.join(", ")));
    }
    if report.repairs.failing > 0 {
        found.push(format!("repairs: {}", report.repairs));
    }
    for namespace in report.namespaces.iter().filter(|_| !single_layer) {
        let gaps = namespace.gaps.iter();
        found.extend(gaps.map(|gap| format!("{} has one layer only: {gap}", namespace.label)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::report::{Attachment, Namespace, Repairs};

    fn ready() -> StatusReport {
        let attach = |hook: &str| Attachment { hook: hook.to_owned(), ..Attachment::default() };
        let hooks = HOOKS.iter().filter(|hook| hook.side != Side::Interface);
        StatusReport {
            generation: 1,
            attachments: hooks.map(|hook| attach(hook.name)).collect(),
            namespaces: vec![Namespace { label: "shop/web".into(), ..Namespace::default() }],
            ..StatusReport::default()
        }
    }

    #[test]
    fn each_lack_counts_by_itself() {
        assert_eq!(amiss(&ready(), false), [""; 0]);

        let report = StatusReport { generation: 0, ..ready() };
        assert_eq!(amiss(&report, true), ["no policy is in force yet"]);

        let mut report = ready();
        report.attachments.retain(|at| at.hook != "connect6" && at.hook != "egress");
        assert_eq!(amiss(&report, true), ["not attached: egress, connect6"]);

        let repairs = Repairs { count: 1, failing: 1, last: Some("connect4".into()) };
        let report = StatusReport { repairs, ..ready() };
        assert_eq!(amiss(&report, true), ["repairs: 1 made, 1 FAILING; the last: connect4"]);

        let mut report = ready();
        report.namespaces[0].gaps = vec!["eth0 is no veth".into()];
        assert_eq!(amiss(&report, false), ["shop/web has one layer only: eth0 is no veth"]);
        assert_eq!(amiss(&report, true), [""; 0]);

        let mut report = ready();
        report.namespaces[0].limits = vec!["hostNetwork".into()];
        assert_eq!(amiss(&report, false), [""; 0], "its owner's to mend");
    }
}
