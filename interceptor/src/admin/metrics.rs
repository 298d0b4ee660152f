//! `interceptor metrics`: what `status` knows, as Prometheus reads it (text format 0.0.4).
//!
//! Labels are words of our own, from closed sets: reasons, findings, tiers, limits, tables; and the pods
//! of the node, as the API server names them. What a workload or an upstream chose (a name, a Host, an
//! address) never becomes one, so their number is bounded whatever anybody sends (T-53, T-56).
//! docs/metrics.md lists every metric.

use std::fmt;

use interceptor_common::Finding;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::StatusReport;
use super::report::PodRecords;

/// Begins every name.
const PREFIX: &str = "interceptor";

/// One metric with all its values.
#[derive(Debug)]
struct Metric {
    name: &'static str,
    kind: MetricType,
    help: &'static str,
    labels: &'static [&'static str],
    /// By the labels' values.
    values: Vec<(Vec<String>, u64)>,
}

/// All of them.
#[derive(Debug)]
struct Metrics(Vec<Metric>);

/// The metrics of one interceptor.
///
/// # Errors
/// None: it is written to memory.
pub fn render(report: &StatusReport) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Metrics(metrics(report))));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for Metric { name, kind, help, labels, values } in &self.0 {
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for (words, value) in values {
                let labelled: Vec<_> =
                    labels.iter().copied().zip(words.iter().map(String::as_str)).collect();
                let labelled = labelled.as_slice();
                let one = family.encode_family(&labelled)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(*value).encode(one)?,
                    _ => ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX)).encode(one)?,
                }
            }
        }
        Ok(())
    }
}

fn counter(name: &'static str, help: &'static str, value: u64) -> Metric {
    let values = vec![(Vec::new(), value)];
    Metric { name, kind: MetricType::Counter, help, labels: &[], values }
}

fn gauge(name: &'static str, help: &'static str, value: u64) -> Metric {
    Metric { kind: MetricType::Gauge, ..counter(name, help, value) }
}

impl Metric {
    /// Instead of one value, one for each word.
    fn by<W: Into<String>>(
        self,
        label: &'static [&'static str; 1],
        values: impl IntoIterator<Item = (W, u64)>,
    ) -> Self {
        let values = values.into_iter().map(|(word, value)| (vec![word.into()], value)).collect();
        Self { labels: label, values, ..self }
    }

    /// Instead of one value, one for each pod and reason.
    fn by_pod(self, pods: &[PodRecords]) -> Self {
        let of_pod = |pod: &PodRecords| {
            let PodRecords { namespace, name, service_account, records } = pod.clone();
            let who = [namespace, name, service_account];
            records
                .into_iter()
                .map(move |(why, count)| (who.iter().cloned().chain([why]).collect(), count))
        };
        let labels = &["pod_namespace", "pod_name", "service_account", "reason"];
        Self { labels, values: pods.iter().flat_map(of_pod).collect(), ..self }
    }
}

/// Every metric.
fn metrics(report: &StatusReport) -> Vec<Metric> {
    let StatusReport { tiers, connections, reloads, .. } = report;
    let found = |finding: Finding| report.counters.get(finding.label()).copied().unwrap_or(0);
    let limits = |value: fn(&super::report::Limit) -> u64| {
        report.limits.iter().map(move |limit| (limit.name.as_str(), value(limit)))
    };
    let tables = |value: fn(&super::report::Table) -> u64| {
        report.tables.iter().map(move |table| (table.name.as_str(), value(table)))
    };
    let counts = |map: &std::collections::BTreeMap<String, u64>| map.clone();
    vec![
        gauge("uptime_seconds", "Seconds since the daemon started", report.uptime_s),
        gauge("attachments", "Kernel programs at their hooks", report.attachments.len() as u64),
        gauge("policy_generation", "Number of the policy in force", report.generation),
        counter("reloads", "Changes of the policy files, by what became of them", 0)
            .by(&["result"], [("accepted", reloads.accepted), ("refused", reloads.refused)]),
        counter("flows", "Connections by the way that they took", 0).by(
            &["tier"],
            [
                ("bypass", tiers.bypass),
                ("direct", tiers.direct),
                ("name", tiers.name),
                ("proxy", tiers.proxy),
            ],
        ),
        counter("proxied", "Connections that came to the proxy, by why they did not go direct", 0)
            .by(&["why"], counts(&report.why_proxy)),
        counter("kernel_findings", "What the kernel programs found, by finding", 0)
            .by(&["finding"], counts(&report.counters)),
        counter("events_lost", "Reports of the kernel that had no room, by what they were of", 0)
            .by(
                &["event"],
                [
                    ("flow", found(Finding::FlowLost)),
                    ("refusal", found(Finding::RefusalLost)),
                    ("hint", found(Finding::HintLost)),
                ],
            ),
        counter(
            "connections",
            "Connections at the proxy, refused ones included",
            connections.total,
        ),
        gauge("connections_open", "Connections at the proxy that are open", connections.active),
        counter(
            "accept_failures",
            "Accepts that failed, mostly for want of a file descriptor",
            connections.accept_failures,
        ),
        gauge("limit_used", "How much of a limit is taken", 0)
            .by(&["limit"], limits(|limit| limit.now)),
        gauge("limit_most", "The most that a limit allows", 0)
            .by(&["limit"], limits(|limit| limit.most)),
        counter("limit_reached", "Connections that were refused for a limit", 0)
            .by(&["limit"], limits(|limit| limit.refused)),
        counter("records", "Records of connections, requests and refusals, by their reason", 0)
            .by(&["reason"], counts(&report.records)),
        counter("pod_records", "The same of each pod of the node", 0).by_pod(&report.pods),
        counter(
            "access_log_dropped",
            "Access-log lines lost because the log could not keep up or refused them",
            report.access_log_dropped,
        ),
        gauge("table_entries", "Entries of a kernel table", 0)
            .by(&["table"], tables(|table| table.entries)),
        gauge("table_capacity", "Entries that fit into a kernel table", 0)
            .by(&["table"], tables(|table| table.capacity)),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::report::{Connections, Limit, Table, Tiers};

    #[test]
    fn a_report_as_prometheus_reads_it() {
        let report = StatusReport {
            uptime_s: 3,
            tiers: Tiers { bypass: 1, direct: 2, name: 3, proxy: 4 },
            why_proxy: [("http".to_owned(), 5)].into(),
            counters: [("flow_record_lost".to_owned(), 6)].into(),
            connections: Connections { active: 7, total: 8, accept_failures: 9 },
            limits: vec![Limit { name: "undecided".into(), now: 1, most: 2, refused: 3 }],
            tables: vec![Table { name: "NAMES".into(), entries: 10, capacity: 11 }],
            pods: vec![PodRecords {
                namespace: "shop".into(),
                name: "web-0".into(),
                service_account: "web".into(),
                records: [("not_registered".to_owned(), 12)].into(),
            }],
            ..StatusReport::default()
        };
        let text = render(&report).expect("written");
        for line in [
            "# HELP interceptor_uptime_seconds Seconds since the daemon started",
            "# TYPE interceptor_uptime_seconds gauge",
            "interceptor_uptime_seconds 3",
            "# TYPE interceptor_flows_total counter",
            "interceptor_flows_total{tier=\"proxy\"} 4",
            "interceptor_proxied_total{why=\"http\"} 5",
            "interceptor_events_lost_total{event=\"flow\"} 6",
            "interceptor_connections_open 7",
            "interceptor_connections_total 8",
            "interceptor_accept_failures_total 9",
            "interceptor_limit_used{limit=\"undecided\"} 1",
            "interceptor_limit_most{limit=\"undecided\"} 2",
            "interceptor_limit_reached_total{limit=\"undecided\"} 3",
            "interceptor_table_entries{table=\"NAMES\"} 10",
            "interceptor_pod_records_total{pod_namespace=\"shop\",pod_name=\"web-0\",\
             service_account=\"web\",reason=\"not_registered\"} 12",
        ] {
            assert!(text.lines().any(|have| have == line), "no {line:?} in\n{text}");
        }
    }

    /// docs/metrics.md has a row for each metric, and no other.
    #[test]
    fn the_document_lists_each_metric() {
        let text = render(&StatusReport::default()).expect("written");
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let made: BTreeSet<_> = types.filter_map(|line| line.split(' ').next()).collect();
        let document = include_str!("../../../docs/metrics.md");
        let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
        let listed: BTreeSet<_> = rows.filter_map(|row| row.split(['`', '{']).next()).collect();
        assert_eq!(made, listed);
    }
}
