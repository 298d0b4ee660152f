//! The series of section 16 that a record makes grow, for the field `metric`.

use crate::account::Record;
use crate::policy::Enforcement;

/// Labels that every series of egress has, then those of this one; `name` first.
type Series = Vec<(&'static str, String)>;

/// The series that `record` makes grow (MET-1 to MET-6).
pub(super) fn of(
    record: &Record,
    namespace: &str,
    app: Option<&str>,
    profile: Enforcement,
) -> Vec<Series> {
    let host = record.http.as_ref().and_then(|http| http.authority.as_deref());
    let (service, name) = destination(record, host, profile);
    let flags = match record.flags.is_empty() {
        true => "-".to_owned(),
        false => record.flags.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(","),
    };
    let unknown = || "unknown".to_owned();
    let mut labels = vec![
        ("reporter", "source".to_owned()),
        ("source_workload_namespace", namespace.to_owned()),
        ("source_app", app.map_or_else(unknown, str::to_owned)),
        ("destination_service", service),
        ("destination_service_name", name),
        ("destination_workload", unknown()),
        ("destination_app", unknown()),
        ("destination_version", unknown()),
        ("destination_principal", unknown()),
        ("response_flags", flags),
        ("connection_security_policy", unknown()),
    ];
    let names: &[&str] = match &record.http {
        Some(_) => {
            labels.push(("request_protocol", "http".into()));
            labels.push(("response_code", record.response_code.to_string()));
            &[
                "istio_requests_total",
                "istio_request_duration_milliseconds",
                "istio_request_bytes",
                "istio_response_bytes",
            ]
        }
        None => {
            labels.push(("request_protocol", "tcp".into()));
            &[
                "istio_tcp_sent_bytes_total",
                "istio_tcp_received_bytes_total",
                "istio_tcp_connections_opened_total",
                "istio_tcp_connections_closed_total",
            ]
        }
    };
    let named = |name: &&str| {
        let mut series = vec![("name", (*name).to_owned())];
        series.extend(labels.iter().cloned());
        series
    };
    names.iter().map(named).collect()
}

/// `destination_service` and `destination_service_name` (MET-3). In strict only names of the
/// registry become labels (profiles.md).
fn destination(record: &Record, host: Option<&str>, profile: Enforcement) -> (String, String) {
    let unknown = || "unknown".to_owned();
    let shown = match profile {
        Enforcement::Istio => host.map_or_else(unknown, str::to_owned),
        Enforcement::Strict => unknown(),
    };
    let cluster = record.upstream_cluster.as_ref().map(|cluster| &*cluster.0);
    match cluster {
        Some(own) if own.starts_with("outbound|") => {
            let host = own.rsplit('|').next().unwrap_or(own).to_owned();
            (host.clone(), host)
        }
        Some(other) => (shown, other.to_owned()),
        None if record.route_name.as_deref() == Some("block_all") => {
            (shown, "BlackHoleCluster".to_owned())
        }
        None => (shown.clone(), shown),
    }
}
